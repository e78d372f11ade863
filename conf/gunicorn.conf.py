from gevent import monkey; monkey.patch_all()

# First the patch, before anything imports ssl. The settings are shipped in the package
# (gateway/server/settings.py), so that an installed gateway needs no checkout. Settings added
# below win, except for those that gateway/hosting/gunicorn_settings.py forces; a hook added below takes
# the place of the one imported, so call that from yours.
from gateway.server.settings import *
