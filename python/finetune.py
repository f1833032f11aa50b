"""Fine-tunes a pretrained Llama checkpoint to declare its own attention spans and to live with them.

    spanforge dataset --task arithmetic --split train --count 20000 --seed 0 -o train.jsonl
    python finetune.py --model DIR --data train.jsonl --output OUT
    spanforge eval --model OUT --task arithmetic

What `training/` does from scratch, for those who have a checkpoint: half of the sequences are trained with
the mask of their own declarations and half with everything (`--masks mixed`), the loss is that of the
response's tokens, and everything follows from the arguments. A run that is ended goes on from its last
checkpoint when the same command is given again. OUT gets the model (LoRA merged), its tokenizer, the loss
curve (`training.jsonl`) and what it was made by (`training.json`).
"""

import argparse
import functools
import json
import os
import random
import sys
import time
from pathlib import Path

import torch
import transformers

from spanforge import SpanforgeError, attention_mask
from spanforge.checkpoint import encode as tokens_of
from spanforge.checkpoint import load_tokenizer
from spanforge.dataset import Sample, read_dataset
from spanforge.errors import DatasetError

IGNORED = -100
"""The label of a token that is not to be predicted."""
LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Parts of all steps: the rate rises over the first and falls from the second on.
WARM_UP, DECAY = 0.05, 0.5


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", required=True, help="folder of a Llama checkpoint")
    add("--data", required=True, help="file of `spanforge dataset`")
    add("--output", required=True, help="folder of the trained model")
    add("--masks", choices=["mixed", "dense", "span"], default="mixed", help="default: %(default)s")
    add("--steps", type=int, default=1000, help="default: %(default)s")
    add("--batch", type=int, default=16, help="sequences of a step (default: %(default)s)")
    add("--micro-batch", type=int, default=4, help="of them at a time (default: %(default)s)")
    add("--max-tokens", type=int, default=2048, help="leave longer sequences out (%(default)s)")
    add("--rate", type=float, default=2e-5, help="rate of the plateau (default: %(default)s)")
    add("--lora", type=int, metavar="RANK", help="train adapters of this rank instead; needs peft")
    add("--seed", type=int, default=0, help="of data, masks and adapters (default: %(default)s)")
    add("--line", type=int, default=10, help="steps between lines of the loss curve (%(default)s)")
    add("--checkpoint", type=int, default=100, help="steps between checkpoints (%(default)s)")
    arguments = parser.parse_args(argv)
    for name in ("steps", "batch", "micro_batch", "line", "checkpoint"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}: at least 1")
    return arguments


def encode(tokenizer, sample: Sample) -> dict:
    """A sample as tokens: prompt and response cut on their own, as in decoding, then the end."""
    ids, offsets = tokens_of(tokenizer, sample.prompt)
    response, spans = tokens_of(tokenizer, sample.response, add_special_tokens=False)
    labels = [IGNORED] * len(ids) + response
    ids += response
    offsets += [(len(sample.prompt) + start, len(sample.prompt) + end) for start, end in spans]
    end = tokenizer.eos_token_id
    if end is not None and ids[-1] != end:
        ids.append(end)
        labels.append(end)
        offsets.append((0, 0))
    return {"sample": sample, "ids": ids, "labels": labels, "offsets": offsets}


def collate(sequences: list[dict], are_dense: list[bool], device: torch.device) -> dict:
    """A batch for the model: ids and labels `[batch, tokens]`, the mask `[batch, 1, tokens, tokens]`."""
    longest = max(len(sequence["ids"]) for sequence in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    # What fills up a sequence attends to itself: a softmax needs something.
    mask = torch.eye(longest, dtype=torch.bool).repeat(len(sequences), 1, 1, 1)
    for row, (sequence, is_dense) in enumerate(zip(sequences, are_dense)):
        count = len(sequence["ids"])
        ids[row, :count] = torch.tensor(sequence["ids"])
        labels[row, :count] = torch.tensor(sequence["labels"])
        mask[row, 0, :count, :count] = attention_mask(sequence["sample"], sequence["offsets"], is_dense)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def drawn(arguments: argparse.Namespace, count: int, step: int) -> list[tuple[int, bool]]:
    """The sequences of a step, and which of them attend to everything. Follows from the seed and the
    step alone; each epoch has every sequence once."""
    chosen = []
    for at in range(step * arguments.batch, (step + 1) * arguments.batch):
        epoch, place = divmod(at, count)
        coin = random.Random(f"mask {arguments.seed} {at}").random() < 0.5
        is_dense = {"mixed": coin, "dense": True, "span": False}[arguments.masks]
        chosen.append((order(arguments.seed, epoch, count)[place], is_dense))
    return chosen


@functools.lru_cache(maxsize=2)
def order(seed: int, epoch: int, count: int) -> list[int]:
    numbers = list(range(count))
    random.Random(f"order {seed} {epoch}").shuffle(numbers)
    return numbers


def rate(step: int, steps: int) -> float:
    """The share of the full rate at a step."""
    done = step / steps
    return min(done / WARM_UP, 1.0, (1.0 - done) / (1.0 - DECAY))


def load_model(arguments: argparse.Namespace, device: torch.device) -> torch.nn.Module:
    config = transformers.AutoConfig.from_pretrained(arguments.model)
    if config.model_type != "llama":
        raise DatasetError(
            f"{arguments.model}: model_type is {config.model_type}, and `spanforge eval` loads llama "
            "only: give a checkpoint of that architecture"
        )
    # Adapters are small; without them the weights themselves take the small steps of training.
    is_half = arguments.lora is not None and has_bf16(device)
    model = transformers.LlamaForCausalLM.from_pretrained(
        arguments.model,
        dtype=torch.bfloat16 if is_half else torch.float32,
        attn_implementation="sdpa",
    )
    if arguments.lora is not None:
        try:
            import peft
        except ImportError:
            raise DatasetError("--lora needs peft: pip install peft") from None
        model = peft.get_peft_model(model, peft.LoraConfig(r=arguments.lora, target_modules=LORA_MODULES))
    return model.to(device)


def has_bf16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(path.name + ".new")
    partial.write_text(text)
    os.replace(partial, path)


def train(arguments: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(arguments.seed)
    tokenizer = load_tokenizer(arguments.model)
    sequences = [encode(tokenizer, sample) for sample in read_dataset(arguments.data)]
    kept = [sequence for sequence in sequences if len(sequence["ids"]) <= arguments.max_tokens]
    if not kept:
        raise DatasetError(f"{arguments.data}: every sequence is longer than --max-tokens")
    if len(kept) < len(sequences):
        left_out = len(sequences) - len(kept)
        print(f"{left_out} of {len(sequences)} sequences are too long: left out", file=sys.stderr)
    model = load_model(arguments, device)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), betas=(0.9, 0.98), weight_decay=0.05)

    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = output / "checkpoint.pt"
    made_by = {key: value for key, value in vars(arguments).items() if key not in ("line", "checkpoint")}
    state = {"arguments": made_by, "step": 0, "tokens": 0, "seconds": 0.0, "losses": [], "lines": []}
    if checkpoint.exists():
        kept_state = torch.load(checkpoint, map_location=device, weights_only=True)
        if kept_state["arguments"] != made_by:
            raise DatasetError(
                f"{checkpoint} is of a run with other arguments ({kept_state['arguments']}): give those, "
                "or another --output"
            )
        model.load_state_dict(kept_state.pop("weights"), strict=False)
        optimizer.load_state_dict(kept_state.pop("optimizer"))
        state = kept_state

    begun = time.monotonic() - state["seconds"]
    for step in range(state["step"], arguments.steps):
        chosen = [(kept[at], is_dense) for at, is_dense in drawn(arguments, len(kept), step)]
        targets = sum(label != IGNORED for sequence, _ in chosen for label in sequence["labels"])
        total = 0.0
        for at in range(0, len(chosen), arguments.micro_batch):
            batch = collate(*map(list, zip(*chosen[at : at + arguments.micro_batch])), device)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
                logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            # The sum over tokens, so that each counts alike however a step is divided.
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(),
                batch["labels"][:, 1:].flatten(),
                ignore_index=IGNORED,
                reduction="sum",
            )
            loss = loss / targets
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * rate(step, arguments.steps)
        optimizer.step()
        optimizer.zero_grad()
        state["losses"].append(total)
        state["step"] = step + 1
        state["tokens"] += sum(len(sequence["ids"]) for sequence, _ in chosen)
        state["seconds"] = time.monotonic() - begun
        is_last = state["step"] == arguments.steps
        if state["step"] % arguments.line == 0 or is_last:
            line = {
                "step": state["step"],
                "tokens": state["tokens"],
                "loss": sum(state["losses"]) / len(state["losses"]),
                "rate": optimizer.param_groups[0]["lr"],
                "seconds": round(state["seconds"], 3),
            }
            state["lines"].append(json.dumps(line))
            state["losses"] = []
            print(state["lines"][-1], file=sys.stderr)
        if state["step"] % arguments.checkpoint == 0 and not is_last:
            weights = {name: parameter.detach() for name, parameter in trained.items()}
            partial = checkpoint.with_suffix(".new")
            torch.save(state | {"weights": weights, "optimizer": optimizer.state_dict()}, partial)
            os.replace(partial, checkpoint)
            write(output / "training.jsonl", "\n".join(state["lines"]) + "\n")

    if arguments.lora is not None:
        model = model.merge_and_unload()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    write(output / "training.jsonl", "\n".join(state["lines"]) + "\n")
    write(output / "training.json", json.dumps({"arguments": made_by}, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    print(output)


def main(argv: list[str] | None = None) -> None:
    try:
        train(parse(argv))
    except (SpanforgeError, OSError, ValueError) as error:
        sys.exit(f"finetune: {error}")


if __name__ == "__main__":
    main()
