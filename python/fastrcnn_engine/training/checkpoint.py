"""Checkpoints: tensors and plain Python values only, written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from fastrcnn_engine.data.preparation import Preprocessing
from fastrcnn_engine.files import sync_folder, whole_file
from fastrcnn_engine.models import NETWORKS, FastRCNN, build_network, ranks_of, split_layers
from fastrcnn_engine.models.pretrained import load_plain
from fastrcnn_engine.training.device import checked_device

FORMAT = 1
NETWORK_KEYS = {"name", "classes", "preprocessing", "box_regression", "classifier", "frozen",
                "ranks"}  # fmt: skip
# What may stand beside the network and its weights, as far as anybody looks into it.
KINDS = {"iteration": int, "config": dict, "proposals_made_with": (dict, type(None)),
         "optimiser": dict, "meter": dict, "best": (dict, type(None)), "random_state": dict,
         "random_states": list, "scaler": dict}  # fmt: skip
PATHS = ("data", "proposals", "output")  # of the config


def save_checkpoint(path: Path, model: FastRCNN, **state: Any) -> None:
    """Write the model, what is needed to rebuild it, and ``state`` to ``path``: tensors and plain
    values, of which those named in KINDS must be of that kind.

    Neither a crash nor a power cut leaves half a file. A link is replaced: what it leads to, the
    checkpoint of another run perhaps, stays.

    Raises:
        ValueError: a value of ``state`` is of another kind than who reads the file expects.
        OSError: it cannot be written (disk full, read-only, ...); ``path`` is what it was.
    """
    for name, kind in KINDS.items():
        if name in state and not isinstance(state[name], kind):
            raise ValueError(f"{name} is {state[name]!r:.60}; it must be of {kind}")
    content = {
        "format": FORMAT,
        "network": {
            "name": model.name,
            "classes": list(model.classes),
            "preprocessing": model.preprocessing.to_dict(),
            "box_regression": model.box_regression,
            "classifier": model.classifier,
            "frozen": list(model.frozen),
            "ranks": ranks_of(model),
        },
        "model": model.state_dict(),
        **state,
    }

    with whole_file(Path(path), replace_link=True) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's, of what the file said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def keep_checkpoints(path: Path, iteration: int, keep: int) -> None:
    """Keep the checkpoint beside itself as ``checkpoint-ITERATION.pt``, and of those up to it the
    ``keep`` newest. Later ones are of another run, or of this one before it went back.

    Raises OSError when it cannot be written.
    """
    kept = path.with_name(f"{path.stem}-{iteration}{path.suffix}")
    kept.unlink(missing_ok=True)  # of the same iteration, by a run that was killed after it
    try:
        os.link(path.resolve(), kept)  # what is there is never written to again, only replaced
    except OSError:  # a file system without links
        with whole_file(kept) as file, open(path, "rb") as checkpoint:
            shutil.copyfileobj(checkpoint, file)
    sync_folder(kept.parent)
    pattern = re.compile(re.escape(path.stem) + r"-(\d+)" + re.escape(path.suffix))
    numbered = [(int(m[1]), f) for f in path.parent.iterdir() if (m := pattern.fullmatch(f.name))]
    for _, old in sorted(one for one in numbered if one[0] <= iteration)[:-keep]:
        old.unlink()


def checkpoint_file(path: Path) -> Path:
    """The checkpoint a user means by a file, or by the folder of a run."""
    return path / "checkpoint.pt" if path.is_dir() else path


def load_checkpoint(path: Path, *, tensors: bool = True) -> dict[str, Any]:
    """Read a checkpoint on the CPU, with ``weights_only=True``: the file cannot run code.

    Args:
        tensors: False leaves them on the disk until one is looked at, for whoever wants the plain
            values alone.

    Raises:
        ValueError: no such file, or not a checkpoint of this package.
    """
    path = checkpoint_file(Path(path))
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist")
    mapped = not tensors and zipfile.is_zipfile(path)  # else torch complains of the mapping
    content = load_plain(path, "checkpoint", mapped=mapped)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a checkpoint of this package (format {FORMAT} expected); "
            "bare state dicts of pre-trained networks go to the weights option"
        )
    network = content.get("network")
    whole = isinstance(network, dict) and network.keys() >= NETWORK_KEYS
    if not whole or not isinstance(content.get("model"), dict):
        raise ValueError(
            f"{path} is not a whole checkpoint: it must hold the network "
            f"({', '.join(sorted(NETWORK_KEYS))}) and the weights of its model"
        )
    said = {name: (content[name], kind) for name, kind in KINDS.items() if name in content}
    if isinstance(config := content.get("config"), dict):
        said |= {name: (config.get(name), (str, type(None))) for name in PATHS}
    for name, (value, kind) in said.items():
        if not isinstance(value, kind):
            raise ValueError(
                f"{path} is not a whole checkpoint: {name} is {value!r:.60}, which no training "
                "writes; take another"
            )
    return content


def path_of_training(path: Path, content: dict[str, Any], name: str) -> Path | None:
    """Where the ``data`` or ``proposals`` of the training that wrote a checkpoint are now.

    That is where they were, or, as a run may have been moved along with them, where the same way
    leads from the checkpoint. None if the checkpoint does not say; a path that leads nowhere if
    they are at neither place.
    """
    trained = content.get("config", {})
    if trained.get(name) is None:
        return None
    stored, output = Path(trained[name]), Path(trained.get("output", ""))
    places = [stored]
    if stored.is_absolute() == output.is_absolute():
        way = os.path.relpath(stored, output)
        places.append(Path(os.path.normpath(path.parent.absolute() / way)))
    return next((place for place in places if place.exists()), stored)


def load_network(
    path: Path, *, model: FastRCNN | None = None, device: str = "cpu"
) -> FastRCNN:
    """A trained network from a checkpoint, in evaluation mode.

    Args:
        path: the file, or the folder of a run.
        model: for a backbone or head of your own: the network, built as for the training, which is
            filled in and returned. Its weights, how images are prepared for it and what it puts
            out are those of the checkpoint. None builds one of the networks with a name.

    Raises:
        ValueError: no such device, an unreadable file, a network without a name and no ``model``,
            or a model of other classes or layers, or whose parts do not fit. It may be filled in by
            half then.
    """
    target = checked_device(device)
    # Mapped: what the optimiser kept, as large as the weights, is not read.
    content = load_checkpoint(path, tensors=False)
    network = content["network"]
    if model is None and network["name"] not in NETWORKS:
        raise ValueError(
            f"{path} holds a network of your own, {network['name']!r}; build it as for training "
            "and have it filled in, in Python: load_network(path, model=model)"
        )
    if model is not None and list(model.classes) != network["classes"]:
        raise ValueError(
            f"{path} holds a network for the classes {network['classes']}, but those of the model "
            f"are {list(model.classes)}"
        )
    fits = "describe a network that can be built" if model is None else "fit the model"
    try:
        if model is None:
            model = build_network(network["name"], network["classes"], freeze_to="none")
        _fill_in(model, network)
    except Exception as error:  # plain values of any kind may be in it
        raise ValueError(f"{path} does not {fits}: {error}; take another") from error
    load_weights(model, content, path)
    model.check_types()
    if model.name not in NETWORKS:
        model.check_parts()
    broken = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{path}: {broken[0]} holds numbers that are not finite, with which nothing is found; "
            "the file is damaged, take another"
        )
    return model.to(target).eval()


def _fill_in(model: FastRCNN, network: dict[str, Any]) -> None:
    """All that a checkpoint tells of a network beside the weights."""
    model.preprocessing = Preprocessing.from_dict(network["preprocessing"])
    if network["ranks"] != ranks_of(model):
        split_layers(model, network["ranks"])
    model.freeze([name for name in network["frozen"] if name not in model.frozen])
    model.classifier, model.box_regression = network["classifier"], network["box_regression"]
    for name, known in (("classifier", ["softmax", "svm"]), ("box_regression", [True, False])):
        if getattr(model, name) not in known:
            raise ValueError(f"{name} must be one of {known}, got {getattr(model, name)!r}")


def load_weights(model: FastRCNN, content: dict[str, Any], path: Path) -> None:
    """Copy the weights and buffers of a checkpoint's content into ``model``.

    Raises ValueError when they do not fit, naming both networks or else the first layer, and when
    they are compressed or SVMs and the model is not.
    """
    name = content["network"]["name"]
    ranks = content["network"]["ranks"]
    if ranks and ranks != ranks_of(model):
        raise ValueError(
            f"{path} holds a compressed network ({ranks}); it is for detection and does not learn: "
            "take the checkpoint it was made of"
        )
    if content["network"]["classifier"] != model.classifier:
        raise ValueError(
            f"{path} holds a network that scores by SVMs; it is for detection and does not learn: "
            "take the checkpoint it was made of"
        )
    try:
        model.load_state_dict(content["model"])
    except (RuntimeError, AttributeError) as error:  # the second of a name that is no text
        if name != model.name:
            raise ValueError(
                f"{path} holds the network {name!r}, whose weights do not fit {model.name!r}, "
                "which is asked for; give a checkpoint of that one"
            ) from error
        raise ValueError(
            f"the weights in {path} do not fit this network; it was written by another network or "
            f"another version: {_first_misfit(model, content['model']) or error}"
        ) from error


def _first_misfit(model: FastRCNN, weights: dict[Any, Any]) -> str | None:
    """The first of the weights that keeps a checkpoint from being loaded. torch tells of all."""
    own = model.state_dict()
    for name in (*own, *weights):
        if name not in own:
            return f"{name} is not in the network"
        if name not in weights:
            return f"{name} is not in the file"
        shape = tuple(getattr(weights[name], "shape", ()))
        if shape != tuple(own[name].shape):
            return f"{name} has shape {shape}, expected {tuple(own[name].shape)}"
    return None


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """State of torch's generators, the source of dropout."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put torch's generators back to a state from ``random_state``."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
