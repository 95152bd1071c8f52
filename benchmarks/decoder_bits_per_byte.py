"""How well does the embedded decoder predict text it has not seen? Bits per byte, beside gzip and a byte trigram model.

    python benchmarks/decoder_bits_per_byte.py [--decoder DIR] [--text NAME=FILE.txt ...] [--documents 300]

Held-out pydocs are always measured; further texts (one document a line) come by --text. The trigram model is trained on
the pydocs that the decoder was trained on, interpolated over its orders (Witten-Bell).
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from pathlib import Path

import numpy as np

from rayvec import assets
from rayvec.data.pairs import is_held_out
from rayvec.data.pydocs import collect


def decoder_bits(folder: Path, documents: list[str]) -> float:
    """Total bits the decoder needs for the documents, each on its own after BOS, in windows of its context."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    context = model.config.max_position_embeddings
    bits = 0.0
    with torch.inference_mode():
        for document in documents:
            ids = tokenizer(document)["input_ids"]
            # Every window after the first repeats half a context that it does not pay for.
            for start in range(0, max(len(ids) - 1, 1), context // 2):
                window = torch.tensor([ids[start : start + context]])
                if window.shape[1] < 2:
                    break
                logp = torch.log_softmax(model(input_ids=window, use_cache=False).logits[0, :-1].float(), dim=-1)
                nats = -logp.gather(1, window[0, 1:, None])[:, 0]
                paid_before = 0 if start == 0 else context - context // 2 - 1
                bits += float(nats[paid_before:].sum()) / math.log(2)
                if start + context >= len(ids):
                    break
    return bits


class Trigram:
    """Byte trigram with Witten-Bell interpolation down to the uniform distribution."""

    def __init__(self, text: bytes) -> None:
        data = np.frombuffer(text, dtype=np.uint8).astype(np.int64)
        self.counts = [
            np.bincount(sum(data[i : len(data) - n + 1 + i] << (8 * (n - 1 - i)) for i in range(n)), minlength=256**n)
            for n in (1, 2, 3)
        ]

    def bits(self, text: bytes) -> float:
        """Total bits for the text, its first two bytes left out."""
        data = np.frombuffer(text, dtype=np.uint8).astype(np.int64)
        a, b, c = data[:-2], data[1:-1], data[2:]
        probability = np.full(len(c), 1 / 256)
        for counts, key in zip(self.counts, (c, (b << 8) | c, (a << 16) | (b << 8) | c), strict=True):
            table = counts.reshape(-1, 256)
            history = key >> 8
            total, kinds = table.sum(axis=1)[history], (table > 0).sum(axis=1)[history]
            seen = total + kinds > 0
            probability = np.where(
                seen, (counts[key] + kinds * probability) / np.maximum(total + kinds, 1), probability
            )
        return float(-np.log2(probability).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", type=Path, default=None)
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    rows = collect(workers=2).to_pylist()
    documents = {row["id"]: f"{row['title']}\n{row['text']}" for row in rows}
    held_out = [text for name, text in documents.items() if is_held_out(name)]
    step = max(1, len(held_out) // options.documents)
    texts = {"pydocs (held out)": held_out[::step][: options.documents]}
    for item in options.text:
        name, _, file = item.partition("=")
        texts[name] = [line for line in Path(file).read_text().split("\n") if line.strip()][: options.documents]

    trigram = Trigram("\n".join(t for name, t in documents.items() if not is_held_out(name)).encode()[:30_000_000])
    decoder = options.decoder or assets.path("tiny-decoder")
    result = {}
    print(f"{'text':<24}{'bytes':>10}{'decoder':>10}{'trigram':>10}{'gzip -9':>10}   bits per byte")
    for name, group in texts.items():
        joined = "\n".join(group).encode()
        size = sum(len(text.encode()) for text in group)
        row = {
            "bytes": size,
            "decoder": decoder_bits(decoder, group) / size,
            "trigram": trigram.bits(joined) / len(joined),
            "gzip": len(gzip.compress(joined, 9)) * 8 / len(joined),
        }
        result[name] = row
        print(f"{name:<24}{size:>10,}{row['decoder']:>10.3f}{row['trigram']:>10.3f}{row['gzip']:>10.3f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
