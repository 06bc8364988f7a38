"""Files that appear complete or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, mark: str = "") -> Iterator[Path]:
    """Yields where to write a file, a hidden one beside `path`, which then takes its place; it goes if that fails.

    Args:
      path: of the file.
      mark: at the end of the hidden name, such as the number of the process where several may write at once. Without
        it, the next try replaces what a kill has left.
    """
    temporary = path.with_name(f".{path.name}{mark}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
