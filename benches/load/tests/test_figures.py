"""The arithmetic: medians, ratios, goals, cores."""

import unittest

import cases
import goals
import proxies
import ratios
from cores import split
from made_up import run
from rounds import Pace


class Ratios(unittest.TestCase):
    def test_cost_is_cpu_time_over_requests(self):
        self.assertAlmostEqual(ratios.cpu_per_request(run(12.5)), 12.5)
        self.assertAlmostEqual(ratios.user_per_request(run(12)), 3)
        self.assertAlmostEqual(ratios.system_per_request(run(12)), 9)

    def test_cost_of_bytes_is_per_1e9_of_them(self):
        measured = run(500, requests=2000, answer=1_000_000, seconds=4)
        self.assertAlmostEqual(ratios.cpu_per_gigabyte(measured), 0.5)
        self.assertAlmostEqual(ratios.gigabytes_per_second(measured), 0.5)

    def test_a_ratio_is_taken_within_each_round(self):
        # The machine was twice as slow in the second round, for both.
        ours, theirs = [run(8), run(16), run(9)], [run(10), run(20), run(10)]
        self.assertAlmostEqual(ratios.ratio(ours, theirs, ratios.cpu_per_request), 0.8)

    def test_rounds_that_do_not_match_are_an_error(self):
        with self.assertRaises(ValueError):
            ratios.ratio([run(8)], [run(10), run(10)], ratios.cpu_per_request)

    def test_added_latency_is_less_what_is_there_without_a_proxy(self):
        proxy, direct = (
            [run(1, p99=p99) for p99 in (150, 900, 180)],
            [run(1, p99=p99) for p99 in (50, 100, 60)],
        )
        self.assertAlmostEqual(ratios.added(proxy, direct, ratios.latency("p99")), 120)

    def test_growth_is_between_few_and_many(self):
        self.assertAlmostEqual(ratios.growth({"64": 9000, "10000": 9000 + 5 * 9936}), 5)


class Goals(unittest.TestCase):
    def verdicts(self, samples):
        found = goals.verdicts(samples, "session-proxy", {"nginx": "nginx"})
        return {(verdict.measure, verdict.against): verdict for verdict in found}

    def test_what_was_not_measured_is_neither_met_nor_missed(self):
        for verdict in self.verdicts({}).values():
            self.assertIsNone(verdict.met)
            self.assertIn("not measured", verdict.told())

    def test_a_goal_is_met_at_its_limit_and_missed_above(self):
        for cpu, word in ((8.5, "met"), (8.6, "missed")):
            samples = {"get": {"session-proxy": [run(cpu)], "nginx": [run(10)]}}
            verdict = self.verdicts(samples)["CPU per request", "nginx"]
            self.assertEqual(verdict.told()[-1], word)

    def test_added_latency_must_beat_the_best_of_layer_7(self):
        runs = {"direct": 50, "session-proxy": 150, "nginx": 140, "envoy": 400, "haproxy-tcp": 60}
        samples = {"open": {name: [run(1, p99=p99)] for name, p99 in runs.items()}}
        verdicts = self.verdicts(samples)
        measure = "added p99 at 20,000 requests/s"
        self.assertTrue(verdicts[measure, "no proxy"].met)
        # HAProxy's TCP mode is quicker, but does not do the work.
        self.assertFalse(verdicts[measure, "the best layer-7 peer, nginx"].met)

    def test_scaling_is_requests_per_cpu_second(self):
        for two, met in ((11, True), (11.2, False)):
            samples = {
                "workers": {"session-proxy": [run(10)], "session-proxy, 2 workers": [run(two)]}
            }
            verdict = self.verdicts(samples)["requests per CPU second", "two workers over one"]
            self.assertEqual(verdict.met, met)


class Plan(unittest.TestCase):
    def test_the_proxy_shares_its_core_with_nobody(self):
        self.assertEqual(split({0, 1}).one & split({0, 1}).load, frozenset())
        many = split({2, 3, 5, 7})
        self.assertEqual((many.one, many.two, many.load), ({2}, {2, 3}, {7}))
        self.assertEqual(split({4}).one, split({4}).load)

    def test_unknown_cases_are_refused_by_name(self):
        self.assertEqual([case.name for case in cases.named(["h2", "get"])], ["h2", "get"])
        with self.assertRaisesRegex(ValueError, "no case got;"):
            cases.named(["get", "got"])

    def test_the_time_it_takes_is_known_beforehand(self):
        pace = Pace(rounds=5, seconds=1.5, warm_up=0.4)
        get = cases.named(["get"])[0]
        both = [proxies.Nginx(), proxies.Socat()]
        # With the run that has no proxy.
        self.assertAlmostEqual(pace.of_case(get, both), 3 * (0.5 + 5 * 2.0))
        # socat takes no part here.
        workers = cases.named(["workers"])[0]
        self.assertAlmostEqual(pace.of_case(workers, both), 2 * (0.5 + 5 * 2.0))
