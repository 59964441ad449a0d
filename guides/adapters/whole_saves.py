"""Saved adapters are whole: an interrupted ``save_pretrained`` leaves the one that was there."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError

from pp_models.files import FileError
from pp_models.own_files import filled_atomically

#: peft's card, to which it adds what a user wrote there
CARD = "README.md"


def save_whole(is_ours: Callable[[Any], bool]) -> None:
    """Makes peft write the files of adapters beside those that are there, and then put them in their places.

    peft writes its weights in place, so that what stops it leaves half a file where the only copy was. Its method is
    wrapped once; models without such an adapter are saved as before.

    Args:
        is_ours: whether an adapter's configuration is of a kind that is saved so.
    """
    original: Any = PeftModel.save_pretrained
    if getattr(original, "saves_whole", False):
        return

    @functools.wraps(original)
    def save_pretrained(self: Any, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        folder, is_main = Path(save_directory), kwargs.get("is_main_process", True)
        if not is_main or folder.is_file() or not any(map(is_ours, self.peft_config.values())):
            return original(self, save_directory, *args, **kwargs)
        try:
            with filled_atomically(folder, "save_directory") as partial:
                if (folder / CARD).is_file():
                    shutil.copyfile(folder / CARD, partial / CARD)
                return original(self, str(partial), *args, **kwargs)
        except SafetensorError as error:
            intact = "; what was there is intact" if folder.exists() else ""
            raise FileError(f"save_directory: {folder} cannot be written ({error}){intact}") from None

    save_pretrained.saves_whole = True  # type: ignore[attr-defined]
    PeftModel.save_pretrained = save_pretrained  # type: ignore[method-assign]
