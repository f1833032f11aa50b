"""The calls of the CUDA driver, against a stand-in for its library (`cuda_stub.c`)."""

import ctypes
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from spanforge.driver import Driver
from spanforge.errors import DriverError

COMPILER = shutil.which("cc") or shutil.which("gcc")


class Address:
    """As much of a tensor as a launch needs."""

    def __init__(self, address):
        self.address = address

    def data_ptr(self):
        return self.address


class NoDriver(unittest.TestCase):
    def test_a_machine_without_a_driver_is_told_what_to_do(self):
        with self.assertRaisesRegex(DriverError, "no CUDA driver: .*; kernels need an NVIDIA GPU"):
            Driver(library="libcuda-that-nobody-has.so.1")
        # A library that is none.
        with self.assertRaisesRegex(DriverError, "the driver has no cuInit: install driver 580"):
            Driver(library="libc.so.6")


@unittest.skipIf(COMPILER is None, "needs a C compiler for the stand-in")
class Calls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)

    def setUp(self):
        # A library of its own for each test: it keeps what it has noted.
        self.library = f"{self.folder.name}/{self.id()}.so"
        source = Path(__file__).with_name("cuda_stub.c")
        command = [COMPILER, "-shared", "-fPIC", "-Wall", "-Werror", "-o", self.library, str(source)]
        subprocess.run(command, check=True)
        self.driver = Driver(1, self.library)

    def calls(self):
        stub = ctypes.CDLL(self.library)
        stub.stub_calls.restype = ctypes.c_char_p
        self.assertEqual(stub.stub_depth(), 0, "the context that was current is so again")
        return stub.stub_calls().decode().splitlines()

    def test_properties(self):
        p = self.driver.properties
        self.assertEqual((p.name, p.architecture), ("Stub 41", "sm_90a"))
        self.assertEqual((p.multiprocessors, p.shared_bytes_per_block), (3, 232_448))
        with self.assertRaisesRegex(DriverError, "there is no GPU 2: 2 are visible"):
            Driver(2, self.library)

    def test_launches(self):
        code = self.driver.load(b"code")
        self.assertEqual(self.driver.load(b"code"), code)
        names = ["set_tokens", "out", "lse", "partial_acc", "partial_ml"]
        values = {name: Address(0x7F00_0000_0010 + at) for at, name in enumerate(names)}
        values |= {"tile_ptr": None, "sinks": None, "tiles": 5, "kv_heads": -2, "span_heads": 1}
        values |= {"blocks": 2**31 - 1, "smallest_share": -(2**31)}
        self.driver.launch(code, "merge", (10, 3), 128, 0, values, stream=0x7F12_3456_789A)
        plan = {name: Address(at) for at, name in enumerate(["span_ptr", "spans", "set_tokens"])}
        plan |= {"span_tokens": Address(2**64 - 1), "sets": 1}
        outputs = {name: Address(at) for at, name in enumerate(["out", "lse", "other_out", "other_lse"])}
        self.driver.launch(code, "merge-outputs", (2, 1), 128, 0, outputs | {"heads": 7}, stream=0)
        for shared in (50_000, 40_000, 60_000):
            self.driver.launch(code, "plan", (1, 1), 256, shared, plan, stream=0)
        self.assertEqual(
            self.calls(),
            [
                "load",
                "launch spanforge_merge 10,3,1 128,1,1 0 7f123456789a 0 7f0000000010 0 7f0000000011 "
                "7f0000000012 7f0000000013 7f0000000014 5 -2 1 2147483647 -2147483648",
                "launch spanforge_merge_outputs 2,1,1 128,1,1 0 0 0 1 2 3 7",
                "attribute spanforge_plan 8 50000",
                "launch spanforge_plan 1,1,1 256,1,1 50000 0 0 1 2 ffffffffffffffff 1",
                "launch spanforge_plan 1,1,1 256,1,1 40000 0 0 1 2 ffffffffffffffff 1",
                "attribute spanforge_plan 8 60000",
                "launch spanforge_plan 1,1,1 256,1,1 60000 0 0 1 2 ffffffffffffffff 1",
            ],
        )

    def test_what_the_driver_refuses_is_said_in_its_words(self):
        with self.assertRaisesRegex(DriverError, r"^cuModuleLoadData: the image is invalid \(BAD_IMAGE\)$"):
            self.driver.load(b"none")
        code = self.driver.load(b"code")
        plan = {name: Address(0) for name in ["span_ptr", "spans", "set_tokens", "span_tokens"]}
        with self.assertRaisesRegex(DriverError, "^cuLaunchKernel: something else"):
            self.driver.launch(code, "plan", (1, 1), 2048, 0, plan | {"sets": 1}, stream=0)
        self.assertEqual(self.calls(), ["load"])


if __name__ == "__main__":
    unittest.main()
