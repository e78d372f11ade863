"""Which test shows which behaviour of discovery, balancing, health checks and reloading, as data.

The behaviours are those that suites of other gateways, RFCs and registries' manuals ask for. Rule: every one names the
tests that show it, and those exist.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

LOOPS, DECODE = "unit/providers/test_loops.py", "unit/providers/test_decode.py"
CONSUL, WAITING = "integration/test_consul.py", "integration/test_consul_waiting.py"
DNS, SRV = "integration/test_dns.py", "unit/providers/test_dns_srv.py"
ETCD, ETCD_LOOP = "integration/test_etcd.py", "unit/providers/test_etcd.py"
DISCOVERED, OUTAGES = "integration/test_discovered.py", "integration/test_outages.py"
STORE, APP, WATCH = "unit/upstreams/test_store.py", "unit/test_app.py", "unit/config/test_watch.py"
RELOAD, LOAD = "integration/test_reload.py", "integration/test_reload_under_load.py"
LEAVING = "integration/test_worker_leaving.py"
ACTIVE, PROBE = "integration/test_active_health.py", "integration/test_probe.py"
CHECK, PROBER = "unit/checks/test_check.py", "unit/checks/test_prober.py"
BALANCERS, FORWARDED = "unit/balancers/test_balancers.py", "unit/balancers/test_forwarded.py"
TURNS, LEAST, HASH = (f"unit/balancers/test_{name}.py" for name in ("round_robin", "least_requests", "hash"))
BALANCING = "integration/test_balancing.py"

# A behaviour -> its tests.
CASES: dict[str, tuple[str, ...]] = {
    "an index of 0 is asked for as 1, without a busy loop": (
        f"{WAITING}::test_an_index_that_is_none_makes_no_busy_loop",
    ),
    "the same index after a wait changes nothing": (
        f"{LOOPS}::test_an_idle_registry_is_asked_once_a_poll_and_nothing_is_told_twice",
        f"{LOOPS}::test_the_same_data_at_another_index_is_no_update",
        f"{STORE}::test_the_same_again_changes_nothing",
    ),
    "fast churn is bounded and ends with the last state": (
        f"{LOOPS}::test_fast_churn_is_asked_for_twice_a_second_and_ends_with_the_last_state",
        f"{WAITING}::test_churn_is_asked_for_twice_a_second_and_the_last_state_comes",
    ),
    "an answer after the wait and a sixteenth is no error": (
        f"{WAITING}::test_an_answer_that_is_late_by_consul_s_sixteenth_is_no_error",
    ),
    "a watch lives on after a 500": (f"{WAITING}::test_a_watch_lives_on_after_a_500",),
    "an agent that is away for a while costs no request": (
        f"{OUTAGES}::test_traffic_never_notices_an_outage",
        f"{LOOPS}::test_ten_minutes_of_failures_are_not_noticed",
    ),
    "an empty list differs from an error": (
        f"{DISCOVERED}::test_nobody_left_is_told_from_a_registry_without_an_answer",
        f"{STORE}::test_an_empty_group_is_an_answer",
        f"{STORE}::test_an_error_keeps_the_last_good_group",
    ),
    "a service that is unknown or gone: 503": (
        f"{DISCOVERED}::test_nobody_left_is_told_from_a_registry_without_an_answer",
        f"{CONSUL}::test_instances_come_and_go",
    ),
    "without Service.Address it is Node.Address": (
        f"{DECODE}::test_no_service_address_is_the_node_s",
        f"{CONSUL}::test_nodes_outside_the_agent",
    ),
    "port 0 or none: left out": (
        f"{DECODE}::test_an_instance_without_a_port_is_left_out_and_the_others_stay",
        f"{DECODE}::test_a_missing_port_is_left_out",
    ),
    "Meta, Tags, Checks null or missing": (f"{DECODE}::test_members_may_be_null_or_missing",),
    "maintenance of one instance": (f"{CONSUL}::test_maintenance_of_one_instance_and_of_the_node",),
    "an instance in warning gets nothing": (f"{CONSUL}::test_only_passing_instances",),
    "two checks of which one does not pass": (f"{CONSUL}::test_two_checks_must_both_pass",),
    "tagged addresses are not used": (f"{DECODE}::test_tagged_addresses_are_not_used",),
    "Weights.Passing is the weight": (
        f"{DECODE}::test_weights_passing",
        f"{STORE}::test_weight_0_gets_nothing_but_is_known",
    ),
    "an index that is missing or no number": (
        f"{WAITING}::test_an_index_that_is_none_makes_no_busy_loop",
        f"{CONSUL}::test_an_index_is_not_needed",
    ),
    "a body that is too slow spoils no later answer": (
        f"{WAITING}::test_after_a_body_that_was_too_slow_the_next_answer_is_whole",
    ),
    "of two registries one is dead": (f"{WAITING}::test_one_dead_registry_is_no_matter_to_the_others",),
    "registered anew on another port": (
        f"{CONSUL}::test_instances_come_and_go",
        f"{DISCOVERED}::test_nobody_left_is_told_from_a_registry_without_an_answer",
    ),
    "an instance at IPv6": (
        f"{DISCOVERED}::test_an_instance_at_ipv6",
        f"{DECODE}::test_ipv6_in_one_spelling",
        f"{DNS}::test_requests_through_whatever_happens_to_the_dns",
    ),
    "flapping leaves nothing behind": (
        f"{WAITING}::test_flapping_leaves_nothing_behind",
        f"{CONSUL}::test_sockets_and_greenlets_do_not_grow",
    ),
    "compaction: listed anew, and what was deleted meanwhile is gone": (
        f"{ETCD}::test_compaction_means_listing_again_and_what_was_deleted_meanwhile_is_gone",
        f"{ETCD_LOOP}::test_a_compaction_is_followed_by_a_listing_and_what_went_in_between_is_gone",
    ),
    "etcd restarts; a stream is cut within a message": (
        f"{ETCD}::test_a_killed_member_changes_nothing_and_is_found_again",
        f"{ETCD}::test_a_stream_that_is_cut_in_the_middle_of_a_message",
        f"{ETCD_LOOP}::test_a_watch_that_held_is_taken_up_again_soon_and_one_that_did_not_later_and_later",
    ),
    "a bad value costs its own key only": (
        f"{ETCD}::test_a_bad_value_costs_its_own_key_only",
        f"{ETCD_LOOP}::test_a_bad_value_costs_its_own_key_only",
    ),
    "a prefix ends where its path does": (f"{ETCD}::test_what_only_begins_alike_is_something_else",),
    "another weight in an SRV record only": (
        f"{DNS}::test_through_everything_that_a_server_does",
        f"{STORE}::test_what_is_known_survives_a_re_weighting",
    ),
    "priorities of SRV records": (
        f"{DNS}::test_priorities",
        f"{SRV}::test_the_next_priority_only_when_the_first_has_nothing_to_dial",
    ),
    "the root as target: no service": (
        f"{DNS}::test_the_root_as_target_is_no_service",
        f"{DNS}::test_through_everything_that_a_server_does",
    ),
    "one SRV record twice; one target with two ports": (
        f"{DNS}::test_one_record_twice_is_one_and_one_target_may_have_two_ports",
        f"{SRV}::test_one_address_and_port_is_one_endpoint_with_the_weight_of_all",
    ),
    "a failure for the records, or for one address only, keeps what is known": (
        f"{DNS}::test_through_everything_that_a_server_does",
        f"{DNS}::test_only_the_address_of_one_target_cannot_be_had",
    ),
    "no such name and no such record are answers": (
        f"{DNS}::test_there_is_none_is_an_answer_kept_for_a_short_time",
        f"{DNS}::test_requests_through_whatever_happens_to_the_dns",
    ),
    "a TTL of 0, of 1 and a huge one; one look-up at a time": (
        f"{DNS}::test_a_ttl_is_kept_within_bounds",
        f"{DNS}::test_a_ttl_of_0_is_no_storm",
        f"{DNS}::test_one_question_at_a_time_and_whoever_leaves_spoils_nothing",
        f"{SRV}::test_nothing_is_kept_for_longer_than_its_ttl_nor_asked_for_twice_a_second",
    ),
    "port 0 in an SRV record: left out; nothing overrides a port": (
        f"{SRV}::test_what_is_no_endpoint_is_left_out_alone",
    ),
    "case, trailing dot and search list of a name": (
        f"{DNS}::test_case_and_the_trailing_dot_do_not_matter",
        f"{DNS}::test_names_are_absolute",
    ),
    "weighted round robin is smooth from the first request": (
        f"{TURNS}::test_it_is_smooth_from_the_first_request",
        f"{TURNS}::test_eleven_to_three_wherever_it_begins",
    ),
    "weight 0 gets nothing; all zero is a 503": (
        f"{BALANCERS}::test_weight_0_gets_nothing",
        f"{STORE}::test_weight_0_gets_nothing_but_is_known",
    ),
    "who recovers is back, and the split is even again": (
        f"{BALANCERS}::test_who_comes_back_gets_its_share_again",
    ),
    "a check's path, port, host, headers and method are as configured": (
        f"{ACTIVE}::test_what_is_asked",
        f"{PROBE}::test_what_is_asked",
        f"{CHECK}::TestQuestion::test_host_is_the_configured_one_or_the_endpoint_s_own",
    ),
    "a check that is slower than its timeout, and one whose timeout is longer than its interval: no pile-up": (
        f"{ACTIVE}::test_checks_that_are_slower_than_their_interval_do_not_pile_up",
        f"{PROBER}::TestOne::test_a_slow_check_is_not_joined_by_a_second",
        f"{PROBE}::test_what_is_no_answer",
    ),
    "thresholds: so many failures take it out, so many successes bring it back": (
        f"{CHECK}::TestTally::test_so_many_in_a_row",
        f"{PROBER}::TestOne::test_so_many_bad_ones_take_it_out_and_good_ones_bring_it_back",
        f"{ACTIVE}::test_one_that_fails_gets_no_requests_until_it_is_good_again",
    ),
    "two addresses behind one name are told apart": (
        f"{PROBER}::TestOne::test_two_addresses_are_told_apart",
        f"{ACTIVE}::test_one_that_fails_gets_no_requests_until_it_is_good_again",
    ),
    "least connections: a slow one gets fewer; the count falls when a body, a client or a tunnel ends": (
        f"{LEAST}::test_a_slow_one_gets_fewer",
        f"{FORWARDED}::test_who_is_still_sending_gets_nothing_until_that_ends",
        f"{FORWARDED}::test_a_client_that_leaves_before_the_head_leaves_nothing_behind",
    ),
    "hash by header, query, path; no key; stable when one leaves": (
        f"{HASH}::test_the_same_key_is_the_same_endpoint",
        f"{HASH}::test_without_the_key_they_take_turns",
        f"{HASH}::test_when_one_leaves_its_keys_alone_move_and_to_all_others",
        f"{BALANCING}::test_all_workers_send_a_key_and_a_cookie_to_the_same_endpoint",
    ),
    "what is in flight with an endpoint that is removed ends as it would have; nothing new goes there": (
        f"{RELOAD}::test_what_is_in_flight_survives",
        f"{LOAD}::test_nothing_fails_and_nothing_is_left_over",
    ),
    "an endpoint is checked once, however many workers there are": (
        f"{ACTIVE}::test_two_workers_do_not_ask_twice",
        f"{ACTIVE}::test_the_one_that_checks_is_killed",
        f"{PROBER}::TestTwo::test_one_asks_and_both_know",
        f"{PROBER}::TestOne::test_so_many_at_a_time",
    ),
    "an invalid configuration changes nothing and is told": (
        f"{RELOAD}::test_every_worker_follows_a_file",
        f"{WATCH}::test_what_is_wrong_is_told_once_and_changes_nothing",
        f"{APP}::test_the_status_of_the_configuration",
    ),
    "reloads under load fail no request; endpoints are inherited; new ones looked up first": (
        f"{LOAD}::test_nothing_fails_and_nothing_is_left_over",
        f"{STORE}::test_an_upstream_that_stays_keeps_its_provider_and_what_it_said",
        f"{RELOAD}::test_a_new_upstream_is_looked_up_before_its_route_is_there",
    ),
    "what is known of an endpoint survives a reload, and goes when it goes": (
        f"{APP}::test_pools_and_states_survive_for_what_stays_and_go_with_what_goes",
    ),
    "SIGTERM: what is under way is finished, nothing new is taken, it ends in time": (
        f"{LEAVING}::TestTermination::test_what_is_under_way_is_finished",
        f"{LEAVING}::TestTermination::test_at_once_when_nothing_is_left",
        f"{LEAVING}::TestTermination::test_the_deadline_breaks_what_is_left",
        f"{LEAVING}::TestTermination::test_accepting_goes_on_while_it_drains",
    ),
    "max_requests under load: no failed request, streams are finished": (
        f"{LEAVING}::TestUnderLoad::test_max_requests_cost_no_request",
        f"{LEAVING}::TestUnderLoad::test_a_stream_is_finished_by_a_worker_that_is_worn",
    ),
    "a storm of reloads ends with the last": (
        f"{WATCH}::test_a_storm_ends_with_the_last",
        f"{STORE}::test_of_several_configurations_the_last_wins",
        f"{RELOAD}::test_every_worker_follows_a_file",
    ),
    "one bad route among many: nothing is applied, and it is told by name": (
        f"{RELOAD}::test_every_worker_follows_a_file",
    ),
    "configuration and endpoints change together": (
        f"{LOAD}::test_nothing_fails_and_nothing_is_left_over",
        f"{STORE}::test_another_service_does_not_keep_the_endpoints",
    ),
    "hundreds of reloads leave nothing behind": (
        f"{STORE}::test_nothing_is_left_of_hundreds_of_configurations",
        f"{LOAD}::test_nothing_fails_and_nothing_is_left_over",
    ),
}


@cache
def defined(file: str) -> frozenset[str]:
    """The tests of a file: `name`, or `Class::name`."""
    found = set()
    for node in ast.parse((TESTS / file).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


@pytest.mark.parametrize("case", CASES)
def test_the_tests_of_a_case_exist(case: str) -> None:
    named = CASES[case]
    assert named
    assert [test for test in named if test.partition("::")[2] not in defined(test.partition("::")[0])] == []
