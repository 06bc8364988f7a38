"""Run by `distributed`: copies stdin to stderr, and what JAX says as it aborts, many lines, as one."""

import re
import sys


def summary(text: str) -> str:
    """The line for what the coordination service has said, or `text` itself where the program went on."""
    names = re.search(r"stopped sending heartbeats\):\s*([\d, \n]+)", text)
    if "Terminating process" in text and (names or "Failed to send RPC" in text):
        who = ", ".join(names[1].replace(",", " ").split()) if names else "0"
        return f"error: process {who} died or can't be reached; started again, the job goes on from what was saved\n"
    return text


if __name__ == "__main__":
    held = ""
    for line in sys.stdin:
        if held or re.match(r"[EF]\d{4} .* (coordination_service\w*\.cc|client\.h):", line):
            held += line
        else:
            print(line, end="", file=sys.stderr, flush=True)
    print(summary(held), end="", file=sys.stderr)
