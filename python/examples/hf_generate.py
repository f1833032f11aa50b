"""Greedy decoding of a Llama checkpoint that declares, in its own output, what its next step attends to.

    python examples/hf_generate.py --model DIR --prompt '^(((8-2)+(1*9))+4);'
    python examples/hf_generate.py --model DIR --sample train.jsonl

The declared spans select what is attended: by the kernel of `--artifact` on a GPU, and without one by the
reference on the CPU. Each line of the output is text with the positions that its last token attends to.
"""

import argparse
import inspect
import sys
from collections.abc import Iterator, Mapping

import torch
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from spanforge import Artifact, AttentionShape, Limits, SelfSpanAttention, SpanAttention, SpanforgeError
from spanforge.checkpoint import TextStream, encode, end_tokens, load_tokenizer
from spanforge.dataset import named_tokens, read_dataset
from spanforge.errors import DriverError, StepError
from spanforge.spans import Span

DTYPE_NAMES = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}
# The name of the cache among the arguments of a model differs between versions.
CACHE = next(
    name
    for name in ("cache", "past_key_values")
    if name in inspect.signature(transformers.LlamaForCausalLM.forward).parameters
)

attention: SpanAttention | None = None
"""The attention of the step at hand; none while a prompt is read."""


def span_attention(module, query, key, value, attention_mask, scaling=None, **options):
    """An attention function as transformers has them: `query` is `[batch, heads, queries, head_dim]`, `key`
    and `value` are the whole static cache, `[batch, kv_heads, tokens, head_dim]`."""
    if attention is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    out, _ = attention(query[:, :, 0].contiguous(), key, value, scaling)
    return out[:, None], None


transformers.AttentionInterface.register("spans", span_attention)
transformers.AttentionMaskInterface.register("spans", sdpa_mask)


@torch.inference_mode()
def generate(
    model: transformers.LlamaForCausalLM,
    tokenizer: transformers.PreTrainedTokenizerFast,
    prompt: str,
    names: Mapping[str, Span] | None = None,
    max_tokens: int = 256,
    artifact: Artifact | None = None,
    is_dense: bool = False,
) -> Iterator[tuple[str, list[Span]]]:
    """Per generated token its text, and what it attends to as the next query. `names` are the parts of the
    prompt that can be declared, in characters. The model was loaded with `attn_implementation="spans"`."""
    global attention
    config = model.config
    ids, offsets = encode(tokenizer, prompt)
    tokens = torch.tensor([ids], device=model.device)
    room = min(len(ids) + max_tokens, config.max_position_embeddings)
    if room <= len(ids):
        raise StepError(f"a prompt of {len(ids)} tokens leaves a model of {room} positions no room")
    cache = transformers.StaticCache(config=config, max_cache_len=room)
    # The cache of a sequence is one page, as long as the cache.
    shape = AttentionShape(
        dtype=DTYPE_NAMES[model.dtype],
        query_heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        page_size=room,
        layout="HND",
    )
    limits = Limits(rows=1, spans=room, requests=1, max_pages=1)
    steps = SpanAttention(artifact, shape, limits, model.device)
    protocol = SelfSpanAttention(len(ids), named_tokens(names or {}, offsets))
    stream, ends = TextStream(tokenizer), end_tokens(model)
    try:
        while True:
            logits = model(tokens, **{CACHE: cache}).logits
            tokens = logits[:, -1:].argmax(-1)
            text = stream.push(int(tokens))
            protocol.push_token(text)
            spans = [(0, protocol.kv_len)] if is_dense else protocol.spans()
            yield text, spans
            if int(tokens) in ends or protocol.kv_len >= room:
                return
            steps.plan([spans], [0], [[0]], [protocol.kv_len], pages=1)
            attention = steps
    finally:
        attention = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a Llama checkpoint")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--prompt")
    text.add_argument("--sample", help="file of `spanforge dataset`; its first prompt, with its names")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--artifact", help="exported artifact; its kernel runs on the GPU")
    parser.add_argument("--dense", action="store_true", help="attend to everything instead")
    arguments = parser.parse_args()
    try:
        prompt, names = arguments.prompt, None
        if arguments.sample:
            sample = read_dataset(arguments.sample)[0]
            prompt, names = sample.prompt, sample.names
        artifact = Artifact.load(arguments.artifact) if arguments.artifact else None
        if artifact is not None and not torch.cuda.is_available():
            raise DriverError("torch sees no GPU for --artifact: leave it out to compute on the CPU")
        tokenizer = load_tokenizer(arguments.model)
        model = transformers.LlamaForCausalLM.from_pretrained(arguments.model, attn_implementation="spans")
        if artifact is not None:
            model = model.to(torch.device("cuda"), getattr(torch, dtype_of(artifact)))
        line, steps = "", []
        for text, spans in generate(
            model, tokenizer, prompt, names, arguments.max_tokens, artifact, arguments.dense
        ):
            line += text
            steps.append(spans)
            if line.endswith((">", ";", "$")):
                print(f"{line:<32}  {' '.join(f'[{start}, {end})' for start, end in spans)}")
                line = ""
        print(line)
        # The queries that predicted a token: the prompt's last one, and all but the response's last.
        queries = [[(0, steps[0][-1][1] - 1)], *steps[:-1]]
        attended = sum(end - start for spans in queries for start, end in spans)
        share = attended / sum(spans[-1][1] for spans in queries)
        print(f"{share:.1%} of the context attended to", file=sys.stderr)
    except (SpanforgeError, OSError, ValueError) as error:
        sys.exit(f"hf_generate: {error}")


def dtype_of(artifact: Artifact) -> str:
    """The dtype that the artifact's first kernel takes, as torch names it."""
    return {"f16": "float16", "bf16": "bfloat16"}[artifact.kernels[0].spec.shape.dtype]


if __name__ == "__main__":
    main()
