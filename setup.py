"""Packaging of the gateway. Ranges are those that the tests have run against.

gunicorn, gevent, urllib3 and httptools are used below their public surface in places, so
they are held to one series, and the tests say when a newer one differs.
"""

from pathlib import Path

from setuptools import find_packages, setup

TEST = [
    "pytest>=8,<10",
    "hypothesis>=6.100,<7",
    "trustme>=1.2,<2",
    "websockets>=15,<18",
]

setup(
    name="wsgi-gateway",
    version="0.1.0",
    description="A microservice API gateway on gunicorn, gevent, urllib3 and Flask",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the wsgi-gateway authors",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["gateway", "gateway.*"]),
    package_data={"gateway": ["py.typed"]},
    zip_safe=False,
    install_requires=[
        "gunicorn>=27,<28",
        "packaging>=24",  # of gunicorn's gevent worker, which does not ask for it
        "gevent>=26.9,<27",
        "urllib3>=2.8,<2.9",
        "flask>=3.1,<3.2",
        "python-consul2>=0.1.5,<0.2",
        "httptools>=0.9,<0.10",
        "dnspython>=2.7,<3",
        "pydantic>=2.10,<3",
        "requests>=2.32,<3",
        "PyYAML>=6,<7",
        "click>=8.1,<9",
        "prometheus_client>=0.22,<1",
        # Its releases are dated: one minor series is what the tests have run against.
        "google-re2>=1.1.20251105,<1.2",
    ],
    extras_require={
        "test": TEST,
        "dev": [*TEST, "mypy>=2.4,<3", "ruff>=0.17,<0.18", "types-PyYAML>=6,<7", "py-spy>=0.4,<0.5"],
    },
    entry_points={"console_scripts": ["gateway=gateway.commands.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Web Environment",
        "Intended Audience :: Developers",
        "License :: OSI Approved :: MIT License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Internet :: Proxy Servers",
        "Topic :: Internet :: WWW/HTTP :: WSGI",
        "Typing :: Typed",
    ],
)
