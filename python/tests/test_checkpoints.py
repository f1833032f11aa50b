"""The example and the fine-tuning, on a checkpoint of a few thousand random weights."""

import contextlib
import io
import json
import os
import sys
import tempfile
import unittest
from pathlib import Path

from needs import needs

needs("torch", "transformers")

import torch
import transformers

import checkpoints
from spanforge import attention_mask
from spanforge.checkpoint import TextStream, load_tokenizer
from test_dataset import ARITHMETIC
from test_masks import sample

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parent / "examples")]
import finetune
import hf_generate

os.environ["HF_HUB_OFFLINE"] = "1"
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


class Folder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.checkpoint = checkpoints.write(self.folder)

    def load(self, attention):
        return transformers.LlamaForCausalLM.from_pretrained(
            self.checkpoint, attn_implementation=attention
        ).eval()


class Forced:
    """A model that says what it is told to, and notes the logits that it has computed."""

    def __init__(self, model, response):
        self.model, self.response, self.logits = model, list(response), []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, *arguments, **options):
        output = self.model(*arguments, **options)
        self.logits.append(output.logits[0, -1].clone())
        output.logits[:, -1] = -1.0
        output.logits[:, -1, self.response.pop(0)] = 1.0
        return output


class Generate(Folder):
    def test_dense_decoding_is_that_of_transformers(self):
        tokenizer = load_tokenizer(str(self.checkpoint))
        tokens = tokenizer("^(1+2);", return_tensors="pt").input_ids
        expected = self.load("sdpa").generate(tokens, max_new_tokens=20, do_sample=False)
        steps = hf_generate.generate(self.load("spans"), tokenizer, "^(1+2);", max_tokens=20, is_dense=True)
        text = "".join(text for text, _ in steps)
        self.assertEqual(text, tokenizer.decode(expected[0, 7:]))

    def test_decoding_attends_to_what_training_attends_to(self):
        """Step by step with the protocol, the cache and span attention, the logits are those of one pass
        over the whole text with the mask that fine-tuning uses."""
        one = sample(ARITHMETIC)
        tokenizer = load_tokenizer(str(self.checkpoint))
        text = one.prompt + one.response
        ids = tokenizer(text, return_tensors="pt").input_ids
        first = len(one.prompt)
        mask = attention_mask(one, [(at, at + 1) for at in range(len(text))])
        with torch.inference_mode():
            model = self.load("sdpa")
            expected = model(ids, attention_mask=mask[None, None]).logits[0, first - 1 : -1]
            dense = model(ids).logits[0, first - 1 : -1]
        forced = Forced(self.load("spans"), ids[0, first:].tolist())
        spans = [spans for _, spans in hf_generate.generate(forced, tokenizer, one.prompt)]
        torch.testing.assert_close(torch.stack(forced.logits), expected, atol=2e-5, rtol=1e-4)
        self.assertGreater((expected - dense).abs().max(), 1e-3, "the mask makes a difference")
        self.assertEqual(spans, list(one.attended()))

    def test_the_command_prints_text_with_its_spans(self):
        printed, said = io.StringIO(), io.StringIO()
        sys.argv = ["hf_generate", "--model", str(self.checkpoint), "--prompt", "^1;"]
        sys.argv += ["--max-tokens", "8"]
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            hf_generate.main()
        self.assertIn("of the context attended to", said.getvalue())
        sys.argv[-3:] = ["^1;", "--artifact", "nowhere"]
        with self.assertRaisesRegex(SystemExit, "nowhere.*give the folder that `spanforge tune`"):
            hf_generate.main()

    def test_text_comes_when_its_characters_are_whole(self):
        class Bytes:
            def decode(self, tokens, **_):
                return bytes(tokens).decode(errors="replace")

        stream = TextStream(Bytes())
        self.assertEqual([stream.push(byte) for byte in "aö→".encode()], ["a", "", "ö", "", "", "→"])


class Finetune(Folder):
    def setUp(self):
        super().setUp()
        self.data = self.folder / "train.jsonl"
        lines = []
        for digit in "012345":
            text = {name: ARITHMETIC[name].replace("2", digit) for name in ("prompt", "response")}
            lines.append(json.dumps(ARITHMETIC | text) + "\n")
        self.data.write_text("".join(lines))

    def run_it(self, output, *options):
        common = ["--model", str(self.checkpoint), "--data", str(self.data), "--batch", "4"]
        common += ["--micro-batch", "3", "--rate", "1e-2", "--line", "5", "--checkpoint", "7"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            finetune.main([*common, "--output", str(self.folder / output), *options])
        lines = (self.folder / output / "training.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def test_the_loss_falls_and_the_model_can_be_loaded(self):
        lines = self.run_it("out", "--steps", "60")
        self.assertEqual([line["step"] for line in lines], list(range(5, 61, 5)))
        self.assertGreater(lines[0]["loss"], 2.0)
        self.assertLess(lines[-1]["loss"], 0.5 * lines[0]["loss"])
        self.assertLess(lines[-1]["rate"], 1e-3)
        output = self.folder / "out"
        self.assertFalse((output / "checkpoint.pt").exists())
        config = json.loads((output / "config.json").read_text())
        self.assertEqual((config["model_type"], config["head_dim"]), ("llama", 64))
        load_tokenizer(str(output))("^1;")
        transformers.LlamaForCausalLM.from_pretrained(output)
        made_by = json.loads((output / "training.json").read_text())["arguments"]
        self.assertEqual((made_by["seed"], made_by["masks"]), (0, "mixed"))

    def test_a_run_that_is_ended_goes_on_where_it_was(self):
        whole = self.run_it("whole", "--steps", "20")
        write, stopped = finetune.torch.save, []

        def save(state, path):
            write(state, path)
            stopped.append(path)
            if len(stopped) == 2:
                os.replace(path, self.folder / "parts" / "checkpoint.pt")
                raise KeyboardInterrupt

        finetune.torch.save = save
        try:
            with self.assertRaises(KeyboardInterrupt):
                self.run_it("parts", "--steps", "20")
        finally:
            finetune.torch.save = write
        with self.assertRaisesRegex(SystemExit, "is of a run with other arguments"):
            self.run_it("parts", "--steps", "20", "--seed", "1")
        parts = self.run_it("parts", "--steps", "20")
        for one, other in zip(whole, parts, strict=True):
            self.assertEqual(
                {k: v for k, v in one.items() if k != "seconds"},
                {k: v for k, v in other.items() if k != "seconds"},
            )

    def test_masks_decide_what_is_attended(self):
        losses = {
            masks: self.run_it(masks, "--steps", "1", "--masks", masks)[0]["loss"]
            for masks in ("dense", "span", "mixed")
        }
        self.assertEqual(len(set(losses.values())), 3, losses)

        class Arguments:
            seed, batch, masks = 3, 100, "mixed"

        chosen = finetune.drawn(Arguments, 6, 0)
        self.assertEqual(sorted(at for at, _ in chosen[:6]), list(range(6)))
        self.assertTrue(30 < sum(is_dense for _, is_dense in chosen) < 70)

    def test_adapters_are_merged(self):
        needs("peft")
        lines = self.run_it("lora", "--steps", "30", "--lora", "8")
        self.assertLess(lines[-1]["loss"], lines[0]["loss"])
        names = transformers.LlamaForCausalLM.from_pretrained(self.folder / "lora").state_dict()
        self.assertFalse([name for name in names if "lora" in name])

    def test_only_tokens_of_the_response_are_predicted_and_the_end(self):
        tokenizer = load_tokenizer(str(self.checkpoint))
        one = sample(ARITHMETIC)
        encoded = finetune.encode(tokenizer, one)
        text = "".join(checkpoints.CHARACTERS[at] for at in encoded["labels"] if at >= 0)
        self.assertEqual(text, one.response)
        tokenizer.eos_token = "_"
        self.assertEqual(finetune.encode(tokenizer, one)["labels"][-1], 0)
        short = encoded | {name: encoded[name][:9] for name in ("ids", "labels", "offsets")}
        batch = finetune.collate([encoded, short], [False, True], torch.device("cpu"))
        self.assertEqual(batch["attention_mask"].shape, (2, 1, 35, 35))
        self.assertTrue((batch["labels"][1] == finetune.IGNORED).all())
        self.assertEqual(int(batch["attention_mask"][1, 0, 9:].sum()), 35 - 9)

    def test_what_cannot_be_trained_is_said(self):
        for options, message in [
            (["--data", "nowhere.jsonl"], "`spanforge dataset` writes such files"),
            (["--max-tokens", "10"], "every sequence is longer than --max-tokens"),
            (["--model", str(self.folder / "none")], "finetune: .*none"),
        ]:
            with self.subTest(message), self.assertRaisesRegex(SystemExit, message):
                self.run_it("out", *options)
        checkpoints.write(self.folder, "mistral")
        with self.assertRaisesRegex(SystemExit, "model_type is mistral"):
            self.run_it("out")


if __name__ == "__main__":
    unittest.main()
