"""Which files a dataset was imported from: an import that stopped goes on with the others."""

from __future__ import annotations

import hashlib
from pathlib import Path

from worldsim.dataset_writer import DatasetWriter


class ImportedFiles:
    """The files of an import's folder that are in a dataset already.

    A file is known by its name, with that of the folder or without, and by what it holds: recorders
    give files of other days the same names.

    Args:
        writer: the dataset.
        source: the folder.
    """

    def __init__(self, writer: DatasetWriter, source: Path) -> None:
        self.source, self.there = source, 0
        self._known: dict[str, set[str | None]] = {}
        for name, digest in writer.sources():
            self._known.setdefault(name, set()).add(digest)

    def below(self, path: Path) -> str:
        """A file's name below the folder."""
        return path.relative_to(self.source).as_posix()

    def new(self, path: Path, *parts: str) -> dict[str, str] | None:
        """What the episode of a file is to keep in its metadata; None where it is there already.

        Args:
            path: the file, or a folder.
            parts: of a folder, the names of the files that count, where they are there.

        Raises:
            OSError: it cannot be read.
        """
        below = self.below(path)
        name = f"{self.source.resolve().name}/{below}"
        digest = hashlib.sha256()
        for one in [path / part for part in parts if (path / part).is_file()] or [path]:
            with open(one, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        found = digest.hexdigest()
        # Episodes that were imported before digests were kept are known by their names alone.
        if any({found, None} & self._known.get(n, set()) for n in (name, below)):
            self.there += 1
            return None
        return {"source": name, "source_sha256": found}
