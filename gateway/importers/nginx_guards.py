"""What may refuse a request in nginx: access rules, logins, code, included files that are missing.

Rule: only directives known to let every request through are ignored. Any other directive, of
nginx or of a module, closes the locations that it applies to, unless its value is `off`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway.importers.nginx_syntax import Directive

# Answers that nginx makes; the location is no matter of a gateway then.
ANSWERS = frozenset(
    {"return", "root", "alias", "try_files", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "grpc_pass", "memcached_pass",
     "stub_status", "empty_gif", "autoindex", "index", "dav_methods", "js_content", "content_by_lua",
     "content_by_lua_block", "content_by_lua_file", "perl"}
)  # fmt: skip
GUARDS = (
    "allow", "auth_basic", "auth_jwt", "auth_request", "deny", "internal", "limit_except", "secure_link",
    "ssl_verify_client",
)  # fmt: skip
# Those that also stand before what `return` answers; the others come to speak after that.
_GUARDS_OF_ANSWERS = frozenset({"internal", "ssl_verify_client", "if"})
_SWITCHED_OFF = ("auth_basic", "auth_jwt", "auth_request", "ssl_verify_client")
# Directives that import looks at, and blocks.
_KNOWN = (
    frozenset({"events", "http", "if", "include", "location", "rewrite", "server", "upstream"}) | ANSWERS | {*GUARDS}
)
# Directives of nginx, and of modules that are often built in, that let every request pass to where
# `proxy_pass` says, but for limits of rate and size. `auth_…` are settings of guards.
_HARMLESS = frozenset(
    {
        "absolute_redirect", "access_log", "add_after_body", "add_before_body", "add_header", "add_trailer",
        "addition_types", "aio", "aio_write", "ancient_browser", "ancient_browser_value", "auth_basic_user_file",
        "auth_delay", "auth_request_set", "break", "charset", "charset_map", "charset_types",
        "chunked_transfer_encoding", "connection_pool_size", "default_type", "directio", "directio_alignment",
        "disable_symlinks", "error_log", "error_page", "etag", "expires", "geo", "gunzip", "gunzip_buffers", "gzip",
        "health_check", "http2", "http3", "if_modified_since", "ignore_invalid_headers", "js_import", "js_path",
        "js_preload_object", "js_set", "js_shared_dict_zone", "js_var", "keepalive_disable", "keepalive_min_timeout",
        "keepalive_requests", "keepalive_time", "keepalive_timeout", "large_client_header_buffers", "limit_conn",
        "limit_conn_dry_run", "limit_conn_log_level", "limit_conn_status", "limit_conn_zone", "limit_rate",
        "limit_rate_after", "limit_req", "limit_req_dry_run", "limit_req_log_level", "limit_req_status",
        "limit_req_zone", "limit_zone", "listen", "log_format", "log_not_found", "log_subrequest", "map",
        "map_hash_bucket_size", "map_hash_max_size", "match", "max_headers", "max_ranges", "merge_slashes",
        "min_delete_depth", "mirror", "mirror_request_body", "modern_browser", "modern_browser_value",
        "more_clear_headers", "more_clear_input_headers", "more_set_headers", "more_set_input_headers",
        "msie_padding", "msie_refresh", "open_file_cache", "open_file_cache_errors", "open_file_cache_events",
        "open_file_cache_min_uses", "open_file_cache_valid", "open_log_file_cache", "output_buffers",
        "override_charset", "perl_modules", "perl_require", "perl_set", "port_in_redirect", "postpone_gzipping",
        "postpone_output", "proxy_pass", "read_ahead", "real_ip_header", "real_ip_recursive", "recursive_error_pages",
        "referer_hash_bucket_size", "referer_hash_max_size", "request_pool_size", "reset_timedout_connection",
        "resolver", "resolver_timeout", "rewrite_log", "satisfy", "secure_link_md5", "secure_link_secret",
        "send_lowat", "send_timeout", "sendfile", "sendfile_max_chunk", "server_name", "server_name_in_redirect",
        "server_names_hash_bucket_size", "server_names_hash_max_size", "server_tokens", "set", "set_real_ip_from",
        "slice", "source_charset", "split_clients", "status_zone", "sub_filter", "sub_filter_last_modified",
        "sub_filter_once", "sub_filter_types", "subrequest_output_buffer_size", "tcp_nodelay", "tcp_nopush", "types",
        "types_hash_bucket_size", "types_hash_max_size", "underscores_in_headers", "uninitialized_variable_warn",
        "valid_referers", "variables_hash_bucket_size", "variables_hash_max_size", "zone",
    }
)  # fmt: skip
# Families of directives without one that refuses, but for the names behind them.
_FAMILIES: dict[str, frozenset[str]] = {
    "auth_jwt_": frozenset({"auth_jwt_require"}),
    "brotli": frozenset(),
    "client_": frozenset(),
    "fastcgi_": frozenset(),
    "geoip_": frozenset(),
    "geoip2": frozenset(),
    "grpc_": frozenset(),
    "init_by_lua": frozenset(),
    "init_worker_by_lua": frozenset(),
    "js_fetch_": frozenset(),
    "log_by_lua": frozenset(),
    "lua_": frozenset(),
    "set_by_lua": frozenset(),
    "gzip_": frozenset(),
    "http2_": frozenset(),
    "http3_": frozenset(),
    "lingering_": frozenset(),
    "memcached_": frozenset(),
    "modsecurity_": frozenset(),
    "opentelemetry_": frozenset(),
    "opentracing": frozenset(),
    "otel_": frozenset(),
    "proxy_": frozenset(),
    "quic_": frozenset(),
    "scgi_": frozenset(),
    "ssi": frozenset(),
    "ssl_": frozenset(),
    "uwsgi_": frozenset(),
    "userid": frozenset(),
    "vhost_traffic_status": frozenset({"vhost_traffic_status_limit_traffic", "vhost_traffic_status_display"}),
    "zstd": frozenset(),
}


@dataclass(slots=True)
class Level:
    """The directives of a block by name, and the enclosing block, from which it inherits. `asked`
    remembers which directives were used. `main`: the level around `http`, which has no effect on
    requests."""

    block: list[Directive]
    outer: Level | None = None
    asked: set[int] = field(default_factory=set)
    main: bool = False

    def own(self, name: str) -> list[Directive]:
        found = [one for one in self.block if one.name == name]
        self.asked |= {id(one) for one in found}
        return found

    def find(self, name: str) -> list[Directive]:
        found = self.own(name)
        return found if found or self.outer is None else self.outer.find(name)

    def last(self, name: str) -> Directive | None:
        found = self.find(name)
        return found[-1] if found else None

    def rest(self) -> Iterator[Directive]:
        return (one for one in self.block if id(one) not in self.asked)

    def around(self) -> Iterator[Level]:
        """The level itself and the enclosing ones that affect requests."""
        level: Level | None = self
        while level is not None:
            if not level.main:
                yield level
            level = level.outer


def guards(level: Level) -> list[Directive]:
    """Every directive that may refuse requests in a location, its own or inherited."""
    given = {name: level.find(name) for name in GUARDS}
    for name in _SWITCHED_OFF:
        if given[name] and given[name][-1].words[:1] == ["off"]:
            given[name] = []
    if not given["deny"]:
        given["allow"] = []
    return [*(one for name in GUARDS for one in given[name]), *_refusing(level), *_unknown(level)]


def of_answers(found: list[Directive], *, redirected: bool) -> list[Directive]:
    """The guards that run before `return`. Unknown directives may run before it, but a redirect
    reveals nothing."""
    return [one for one in found if one.name in _GUARDS_OF_ANSWERS or (not redirected and one.name not in GUARDS)]


def reason(found: list[Directive]) -> str:
    """Why guards close a route."""
    named = dict.fromkeys(one.name for one in found if one.name in GUARDS or one.name == "if")
    parts = [f"{', '.join(named)} guarded it, and is not in this version"] if named else []
    files = dict.fromkeys(" ".join(one.words) for one in found if one.name == "include")
    if files:
        parts.append(f"include {', '.join(files)} could not be read, and may guard it")
    others = dict.fromkeys(one.name for one in found if one.name not in named and one.name != "include")
    if others:
        parts.append(f"{', '.join(others)} may refuse or divert requests, and is not in this version")
    return "; ".join(parts)


def _refusing(level: Level) -> Iterator[Directive]:
    """Every `if`, own or inherited, that does more than set variables or headers."""
    for one_level in level.around():
        yield from (one for one in one_level.block if one.name == "if" and any(map(_decides, one.block or [])))


def _decides(directive: Directive) -> bool:
    return directive.name == "proxy_pass" or not _harmless(directive.name)


def _unknown(level: Level) -> Iterator[Directive]:
    """Directives not known to let requests through, and unread includes. A directive replaces the
    inherited ones of the same name."""
    met: set[str] = set()
    for one_level in level.around():
        here = [one for one in one_level.block if one.name not in met and not _passed_over(one)]
        yield from here
        met |= {one.name for one in one_level.block if one.name != "include"}


def _passed_over(directive: Directive) -> bool:
    if directive.name == "include":
        return directive.known
    return directive.name in _KNOWN or _harmless(directive.name) or directive.words == ["off"]


def _harmless(name: str) -> bool:
    if name in _HARMLESS:
        return True
    family = next((one for one in _FAMILIES if name.startswith(one)), None)
    if family is None or name in _FAMILIES[family] or name in _KNOWN:
        return False
    # Code may do anything, whatever the family is (ssl_certificate_by_lua_block).
    return "_by_lua" not in name or "_by_lua" in family
