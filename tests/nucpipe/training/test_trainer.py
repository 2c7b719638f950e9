"""What both trainings share: a checkpoint that is none is refused on one line, without advice to load it unsafely."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from nucpipe.backends.model_file import why_not_unpickled
from nucpipe.errors import DataError
from nucpipe.training.trainer import load_checkpoint, save_checkpoint

ADVICE = re.compile("weights_only|trust|still be loaded|two options", re.IGNORECASE)


def test_a_checkpoint_of_other_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"
    torch.save({"settings": {}, "step": Path("x")}, path)  # would have to be unpickled
    with pytest.raises(DataError, match=r"cannot be read .*could run any code.*; delete it to start again") as error:
        load_checkpoint(path, {})
    assert not ADVICE.search(str(error.value))
    assert "\n" not in str(error.value)
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        load_checkpoint(path, {})
    path.unlink()
    save_checkpoint(path, {"settings": {"steps": 3}, "step": 1})
    assert load_checkpoint(path, {"steps": 3}) == {"settings": {"steps": 3}, "step": 1}
    with pytest.raises(DataError, match="of another release of nucpipe; finish the training there"):
        load_checkpoint(path, {"steps": 3, "a newer setting": 0})


def test_no_refusal_of_pytorch_hands_on_its_advice() -> None:
    script = "Cannot use ``weights_only=True`` with TorchScript archives. Do it only if you trust the file."
    assert not ADVICE.search(why_not_unpickled(RuntimeError(script)))
    assert why_not_unpickled(RuntimeError("unexpected EOF.\nmore")) == "unexpected EOF"
    assert why_not_unpickled(EOFError()) == "EOFError"
