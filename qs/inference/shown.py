"""What follows a prompt, on a terminal: as it comes, as text or a line a token."""

from qs import output
from qs.inference.decoding import token_line
from qs.inference.generate import Stream
from qs.model.tokenizer import Tokenizer, settled


def show(stream: Stream, tokenizer: Tokenizer, prompt: str, thoughts: bool) -> None:
    """Print a prompt, the text of a stream of this one prompt, and what it took.

    `thoughts` has a line for each token instead, with the thought before it.
    """
    (ids,) = stream.prompts
    print(output.harmless(prompt), end="\n" if thoughts else "", flush=True)
    shown = said = ""
    for ((_, token),) in stream:
        if thoughts:
            before = [*ids, *(each.id for each in stream.tokens[0][:-1])]
            print(token_line(token, tokenizer, before), flush=True)
            continue
        said = tokenizer.continuation(ids, stream.results()[0].text_ids)
        print(output.harmless(settled(said)[len(shown) :]), end="", flush=True)
        shown = settled(said)
    print(output.harmless(said[len(shown) :]), end="")
    counts = stream.counts
    print(
        f"\n[{counts.tokens} tokens, {counts.thoughts} thoughts, "
        f"{counts.slots} slots in {counts.passes} passes]"
    )
