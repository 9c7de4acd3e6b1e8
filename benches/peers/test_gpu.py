"""What the comparison on a GPU reads and writes, without a GPU and without PyTorch.

    python -m unittest discover benches/peers
"""
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.path.append(str(Path(__file__).resolve().parents[1]))

import cases
import gpu
import report

BENCH = {
    "commit": "abc", "device": "Card", "dtype": "bf16", "units": 100, "seconds": 2.48,
    "rows": [{"stage": stage, "median": 1.0, "min": 0.5, "max": 2.0}
             for stage in ("preprocess", "vision", "prefill", "per unit", "all units", "vocoder", "image to samples")],
}
CASE = {"op": "linear", "case": "257x1024x3072 of 1e0 None +", "dtype": "bf16", "passed": True, "microseconds": 22.0,
        "flops": 1.6e9, "bytes": 1e7, "share": 0.1}


class Names(unittest.TestCase):
    def test_a_product_is_rows_by_depth_by_columns(self):
        for op in ("linear", "linear_step", "linear_decode"):
            self.assertEqual(cases.shape(op, CASE["case"]), {"rows": 257, "depth": 1024, "columns": 3072})

    def test_pytorch_multiplies_the_same_shape(self):
        made = []

        class Torch:
            float32 = None

            @staticmethod
            def rand(size, **_):
                made.append(tuple(size))
                return mock.MagicMock()

        with mock.patch.dict(sys.modules, {"torch": mock.MagicMock(), "torch.nn": mock.MagicMock()}):
            gpu.peer(Torch, "linear", cases.shape("linear", CASE["case"]), None, "cpu")
        self.assertEqual(made, [(257, 1024), (3072, 1024), (3072,)])

    def test_other_operations(self):
        self.assertEqual(cases.shape("layer_norm", "16448x1024 of 1e0"), {"rows": 16448, "channels": 1024})
        self.assertEqual(cases.shape("attention", "2x257x16x64 after 257 of 1"), {"batch": 2, "tokens": 257, "heads": 16, "head": 64})
        self.assertIsNone(cases.shape("attention", "2x257x16x64 after 100 of 1"))
        self.assertEqual(cases.shape("conv1d", "64x32x11 over 900, dilation 5, slope 1 None")["dilation"], 5)
        self.assertIsNone(cases.shape("conv1d", "64x32x11 over 900, dilation 5, slope 1.5 None"))
        self.assertIsNone(cases.shape("conv1d", "64x32x11 over 900, dilation 5, slope 0.1 None"))
        self.assertIsNone(cases.shape("argmax", "1x203"))


class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def file(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def test_reports_that_are_empty_broken_or_missing_cost_nothing_else(self):
        lines = [json.dumps({"device": {"name": "Card"}}), json.dumps(CASE), json.dumps(CASE)[:20]]
        paths = [self.file("empty", ""), self.file("cut", "\n".join(lines)), str(self.folder / "missing")]
        device, found = cases.doctor(paths)
        self.assertEqual((device["device"]["name"], found), ("Card", [CASE]))
        whole = self.file("whole", json.dumps(BENCH))
        half = self.file("half", json.dumps(BENCH | {"rows": BENCH["rows"][:2]}))
        self.assertEqual([report["dtype"] for report in cases.bench([*paths, half, whole])], ["bf16"])

    def test_old_reports_are_one_object_with_other_words(self):
        path = self.file("old", json.dumps({"device": {"name": "Card"}, "cases": [CASE]}))
        self.assertEqual(cases.doctor([path])[1], [CASE])
        old = json.loads(json.dumps(BENCH).replace("image to", "picture to").replace('"min"', '"least"').replace('"max"', '"most"'))
        report = cases.bench([self.file("bench", json.dumps(old))])[0]
        self.assertEqual(report["rows"], BENCH["rows"])

    def test_a_bulk_report_gives_a_row_for_each_run(self):
        runs = [{"kind": kind, "images_per_second": rate} for kind, rate in (("units only", 200.0), ("with sound", 100.0))]
        report = {"model": "m", "dtype": "bf16", "in_flight": 64, "images": 300, "runs": [*runs, {"kind": "broken"}]}
        rows = cases.bulk([self.file("bulk", json.dumps(report)), self.file("no", "{}")])
        self.assertEqual([(row["audio"], row["seconds"]) for row in rows], [(False, 1.5), (True, 3.0)])

    def test_both_ends_are_a_table(self):
        rows = [{"step": "recordings", "dtype": "bf16", "seconds": 2.5, "one": 0.75, "recordings": 1000, "sound": 10000},
                {"step": "evaluate", "dtype": "bf16", "seconds": 50.0, "one": 3.0, "images": 5000, "scores": {}}]
        files = [self.file(row["step"], json.dumps(row)) for row in rows]
        tiny = self.file("tiny", json.dumps(rows[0] | {"tiny": True}))
        found = cases.ends([*files, tiny, self.file("broken", "{"), str(self.folder / "missing")])
        self.assertEqual(found, rows)
        gpu = {"ends": found, "machine": "M", "commit": "abc", "date": "2026-11-27", "file": "f.json", "commands": {}}
        text = report.gpu_ends(gpu)
        self.assertIn("| 10,000 s of sound in 1,000 recordings to units | bf16 | 2.50 | 0.75 |", text)
        self.assertIn("| 5,000 images to units, sound, text and scores | bf16 | 50.00 | 3.00 |", text)

    def test_both_sides_make_as_much_sound(self):
        self.assertEqual(cases.frames(BENCH) * 320 / 16000, BENCH["seconds"])

    def run_gpu(self, *arguments, **patches):
        """results.json after a run of the script in this process."""
        command = ["gpu.py", "--out", str(self.folder), "--device", "cpu", "--tiny", *arguments]
        with mock.patch.object(sys, "argv", command), contextlib.redirect_stdout(io.StringIO()):
            with contextlib.ExitStack() as stack:
                for name, value in patches.items():
                    stack.enter_context(mock.patch.object(gpu, name, value))
                gpu.main()
        return json.loads((self.folder / "results.json").read_text())

    def test_without_pytorch_the_results_of_im2sp_are_kept(self):
        doctor, bench = self.file("doctor", json.dumps(CASE)), self.file("bench", json.dumps(BENCH))
        versions = mock.Mock(side_effect=ImportError("no torch"))
        results = self.run_gpu("--timing", doctor, "--bench", bench, versions=versions)
        self.assertEqual((len(results["bench"]), len(results["operations"])), (1, 1))
        self.assertIn("no torch", results["problems"][-1])

    def test_a_section_that_fails_costs_no_other(self):
        fails = mock.Mock(side_effect=RuntimeError("lost"), __name__="pipeline")
        works = lambda results, *_: results.add("pytorch_operations", {"op": "x", "dtype": "bf16", "shape": {}})
        results = self.run_gpu(versions=dict, pipeline=fails, operations=mock.Mock(side_effect=works, __name__="operations"))
        self.assertEqual(len(results["pytorch_operations"]), 1)
        self.assertTrue(any("lost" in problem for problem in results["problems"]))

    def test_the_report_takes_what_a_check_gives(self):
        doctor, bench = self.file("doctor", json.dumps(CASE)), self.file("bench", json.dumps(BENCH))

        def measured(results, *_):
            shape = cases.shape("linear", CASE["case"])
            results.add("pytorch_operations", {"op": "linear", "dtype": "bf16", "shape": shape, "us": 11.0, "how": "calls"})
            results.add("pytorch_pipeline", {"stage": "units", "form": "bf16+static", "batch": 1, "ms": [3.0, 2.0, 4.0]})
            results.add("pytorch_pipeline", {"stage": "whole", "form": "bf16", "batch": 1, "problem": "none"})

        self.run_gpu("--doctor", doctor, "--timing", doctor, "--bench", bench, versions=dict, pipeline=lambda *_: None, operations=measured)
        steps = [("memcheck", "passed"), ("racecheck-linear", "passed"), ("racecheck-embed", "timed out")]
        lines = [json.dumps({"step": step, "status": status, "seconds": 1, "remark": ""}) for step, status in steps]
        gpu.finish(self.file("steps", "\n".join(lines)), self.folder)
        found = json.loads((self.folder / "results.json").read_text()) | {"file": "x.json"}
        self.assertEqual(found["conformance"]["sanitizers"], {
            "memcheck": "no errors", "racecheck": "no errors (1 operations), timed out (1 operations)"})
        self.assertIn("| image to 100 units | 3.00 | 3.00 (static) |", report.gpu_caption(found))
        self.assertIn("| 257 x 3072 x 1024 | 22.0 | - | 11.0 |", report.gemm(found, None))
        self.assertIn("1 cases of 1 operations", report.gpu_operations(found))

    def test_a_process_that_hangs_or_ends_is_replaced(self):
        side = gpu.Side(mock.Mock(tiny=True, device="cpu"), 1, 1)
        side.command = [sys.executable, "-c", "import sys, time\nfor l in sys.stdin:\n    if 'hang' in l: time.sleep(60)\n"
                        "    if 'end' in l: sys.exit()\n    print('{\"ms\": [1.0]}', flush=True)"]
        self.addCleanup(side.end)
        self.assertEqual(side.ask("vision f32 1", 20), {"ms": [1.0]})
        self.assertIn("no answer", side.ask("hang f32 1", 0.2)["problem"])
        self.assertEqual(side.ask("vision f32 1", 20), {"ms": [1.0]})
        self.assertIn("ended", side.ask("end f32 1", 20)["problem"])


if __name__ == "__main__":
    unittest.main()
