"""Tables, charts and the page they make, out of made-up results."""

import os
import tempfile
import unittest
import xml.etree.ElementTree as xml

import cases
import chart
import report
import tables
from made_up import results, run

SVG = "{http://www.w3.org/2000/svg}"


def samples():
    both = {"direct": [run(5)] * 3, "session-proxy": [run(8)] * 3, "nginx": [run(10)] * 3}
    return {
        "get": both,
        "get-1m": {"session-proxy": [run(500, answer=1 << 20)] * 3, "nginx": [run(1000, answer=1 << 20)] * 3},
        "open": both,
        "workers": {"session-proxy": [run(8)] * 3, "session-proxy, 2 workers": [run(9)] * 3},
        "memory": {"session-proxy": {"64": 9000, "10000": 60000}, "socat": {"64": 64000}},
    }  # fmt: skip


class Tables(unittest.TestCase):
    def row(self, case, name):
        measured = samples()
        case = cases.named([case])[0]
        head, rows = tables.of_case(case, measured[case.name], "session-proxy", {})
        cells = next(row for row in rows if row[0] == name)
        return dict(zip(head, cells, strict=True))

    def test_a_row_has_cost_speed_and_ratio(self):
        row = self.row("get", "nginx")
        self.assertEqual(row["CPU µs/request"], "10.00")
        self.assertEqual((row["user"], row["system"]), ("2.50", "7.50"))
        self.assertEqual(row["requests/s"], "1,000")
        self.assertEqual(row["CPU, ours over it"], "0.80")

    def test_without_a_proxy_there_is_no_cost_of_one(self):
        row = self.row("open", "direct")
        self.assertEqual((row["CPU µs/request"], row["core used"]), ("–", "–"))
        self.assertEqual(row["added p99 µs"], "0")

    def test_large_bodies_are_told_in_bytes(self):
        row = self.row("get-1m", "nginx")
        self.assertEqual(row["GB/s"], "1.05")
        self.assertEqual(row["CPU s/GB"], "0.954")
        self.assertEqual(row["CPU, ours over it"], "0.50")

    def test_who_could_not_hold_all_has_no_growth(self):
        row = self.row("memory", "socat")
        self.assertEqual(list(row.values()), ["socat", "62.5", "–", "–"])

    def test_workers_are_told_in_a_title(self):
        self.assertEqual(tables.title("nginx, 2 workers", {"nginx": "NGINX"}), "NGINX, 2 workers")

    def test_plain_columns_are_aligned(self):
        lines = tables.plain(["a", "bb"], [["long name", "1"], ["x", "22"]]).splitlines()
        self.assertEqual(len({len(line) for line in lines}), 1)


class Charts(unittest.TestCase):
    def test_a_chart_is_well_formed_and_sorted(self):
        bars = [
            chart.Bar("b & c", (3, 9)),
            chart.Bar("<ours>", (2, 6), True),
            chart.Bar("none", (-1,)),
        ]
        root = xml.fromstring(
            chart.bars('a "title" & more', "note", bars, legend=("user", "system"))
        )
        labels = [text.text for text in root.iter(f"{SVG}text") if "label" in text.get("class")]
        self.assertEqual(labels, ["none", "<ours>", "b & c"])
        widths = [float(box.get("width")) for box in root.iter(f"{SVG}rect")]
        self.assertTrue(all(width >= 0 for width in widths))
        # Two of the legend, one of the bar with one part, two of each of the others.
        self.assertEqual(len(widths), 2 + 1 + 2 + 2)
        self.assertAlmostEqual(widths[-2] / widths[-1], 3 / 9, places=2)

    def test_a_chart_needs_nothing_from_elsewhere_and_knows_the_dark(self):
        text = chart.bars("t", "n", [chart.Bar("a", (1,))])
        for outside in ("href", "@import", "url(", "<script", "@font-face"):
            self.assertNotIn(outside, text)
        self.assertIn("prefers-color-scheme: dark", text)

    def test_who_cannot_keep_the_rate_is_named_and_not_drawn(self):
        runs = {
            "direct": [run(1)],
            "nginx": [run(1, p99=150)],
            "socat": [run(1, unsent=900, p99=1e6)],
        }
        root = xml.fromstring(report.latency_chart(runs, "session-proxy", {}))
        texts = [text.text for text in root.iter(f"{SVG}text")]
        self.assertIn("50 µs", texts)
        self.assertNotIn("socat", texts)
        self.assertTrue(any("Too slow for it: socat" in text for text in texts))


class Page(unittest.TestCase):
    def test_the_page_has_every_case_and_says_what_is_missing(self):
        text = report.page(results(samples()), cases.CASES)
        for part in (
            "### `get`: GET, 100 bytes",
            "| CPU per request | Nginx | ≤ 0.85 | 0.80 | met |",
            "| resident memory per idle connection |  | ≤ 6 KiB | 5.13 KiB | met |",
            "- socat, h2: passes bytes on",
            "- envoy, get: **failed**: status 503",
            "benches/load/run --rounds 3",
            "nginx/1.22.1",
            "![CPU time per request of each proxy](cpu.svg)",
        ):
            self.assertIn(part, text)
        self.assertNotIn("### `h2`", text)

    def test_all_files_are_written_and_all_tables_are_tables(self):
        with tempfile.TemporaryDirectory() as folder:
            files = report.write(results(samples()), cases.CASES, folder)
            self.assertEqual(files, ["cpu.svg", "latency.svg", "results.md"])
            for name in ("cpu.svg", "latency.svg"):
                xml.parse(os.path.join(folder, name))
            with open(os.path.join(folder, "results.md"), encoding="utf-8") as page:
                blocks = page.read().split("\n\n")
        for block in blocks:
            if block.startswith("|"):
                cells = {line.count("|") for line in block.splitlines()}
                self.assertEqual(len(cells), 1, block)
