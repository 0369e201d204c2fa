"""The options of the commands: a class for each, and parts that several have.

What is written below a field is its help. Those of `train` are in commands/training.py, as most of
them are settings of the training loop, which needs torch.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

Method = Literal["selective-search", "edge-boxes", "grid"]
Mode = Literal["fast", "quality", "fine"]
Metric = Literal["area", "11point", "coco"]


@dataclass(frozen=True)
class SearchOptions:
    """Region proposals, by OpenCV's contrib modules."""

    method: Method = "selective-search"
    """selective-search (Uijlings et al., IJCV 2013), edge-boxes (Zitnick and Dollar, ECCV 2014) or
    grid: dense boxes of 5 sizes and 3 shapes, whatever is in the image (paper, section 5.5)."""
    mode: Mode = "fine"
    """Of selective search: fast (as in the paper) and quality (figure 3) are OpenCV's settings;
    fine finds small objects better."""
    short_side: int | None = 200
    """Larger images are shrunk to this short side for the search; None: as they are, slowly. Of no
    account for a grid."""
    min_size: int = 16
    """Boxes narrower or lower than this are left out, in pixels of the original image."""
    edge_model: Path | None = None
    """Of edge boxes: the file of a structured edge detector in OpenCV's format (model.yml.gz). None
    takes plain gradients, whose order of the boxes is worth little (docs/training.md)."""
    max_boxes: int | None = None
    """Keep at most so many boxes of an image: of edge boxes the best, of the others a random draw
    that depends on the image's id and the seed alone, a smaller one being part of a larger. None:
    all."""
    seed: int = 3
    """Seed of the draw where an image has more boxes than that."""
    workers: int | None = None
    """Images searched at once; None is one for each core."""


@dataclass(frozen=True)
class Detection:
    """From class scores to detections (paper, section 3)."""

    protocol: Literal["today", "paper"] = "today"
    """today (py-faster-rcnn) looks at one image: score threshold, suppression, the best of all
    classes. paper has no score threshold: of each class the best 100 of an image and 40 times the
    number of images in all, then suppression (code)."""
    score_threshold: float | None = None
    """Protocol today: detections with at most this score are dropped. None: 0.05 of a softmax's
    probabilities, and nothing of SVM scores."""
    nms_threshold: float = 0.3
    """Of two boxes of a class with more IoU than this, the weaker is dropped (R-CNN, code)."""
    max_detections: int = 100
    """Protocol today: the most in one image."""
    box_regression: bool = True
    """Move the proposals as the network says; or keep them as they are (paper, table 6)."""

    def settings(self, classifier: str = "softmax") -> dict[str, Any]:
        """The settings the protocol takes, for the scores of a classifier (``FastRCNN``).

        Raises ValueError for a value out of range, and for a score threshold or a limit the paper's
        protocol does not have.
        """
        import numpy as np

        from fastrcnn_engine.evaluation.detect import check_score_threshold
        from fastrcnn_engine.ops import detections

        if self.score_threshold is not None and not math.isfinite(self.score_threshold):
            raise ValueError(
                "score_threshold must be a finite number, as it is written down in JSON, got "
                f"{self.score_threshold}; one below all scores, -1 of a softmax, drops nothing"
            )
        check_score_threshold(self.score_threshold or 0.0, classifier)
        # The operator's own checks, on no box: now, not after a training.
        none = np.zeros((0, 4), np.float32)
        detections(
            none, none[:, :2], None, (1, 1),
            score_threshold=self.score_threshold or 0.0,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
        )  # fmt: skip
        values = dataclasses.asdict(self)
        if self.protocol == "paper":
            for name in ("score_threshold", "max_detections"):
                if values.pop(name) != getattr(Detection, name):
                    raise ValueError(
                        f"{name} is {getattr(self, name)}, but the paper's protocol has none; "
                        "leave it out, or choose the protocol today"
                    )
        return values


@dataclass(frozen=True)
class Demo:
    """Draw a data set, compute proposals, train, and test on images that were not trained on.

    Everything goes to one folder: the data set in VOC layout, proposals, checkpoint, log,
    metrics.json and report.html, which opens in any browser without a network. Takes at most six
    minutes on two CPU cores. The same seed gives the same mAP on the same machine.
    """

    out: Path = Path("runs/demo")
    """Folder for all results. What an earlier demo left there is replaced."""
    seed: int = 3
    """Seed of the images, of the weights and of the sampling (original code: 3)."""
    train_images: int = 200
    """Images to train on."""
    test_images: int = 60
    """Images to test on. None of them is trained on."""
    iterations: int = 1000
    """Training iterations of two images each (paper 2.3: 40 000 for VOC)."""


@dataclass(frozen=True)
class CheckData:
    """Read a split, decode every image, and list all that is wrong, with file and object.

    Errors would stop a training: files, images, no object at all and, with --proposals, images that
    have none or some that are no numbers. Warnings would not: boxes dropped or clipped, images that
    EXIF turns or that are nearly black, objects that are there twice, images without objects,
    proposals that do not fit their image. Writes check.json with all of it, sizes.svg, a histogram
    of the objects, and samples.jpg with their boxes drawn in. Exit code 1 if there are errors.
    """

    data: Path
    """VOC or COCO directory."""
    split: str = "trainval"
    """Split to look at: ImageSets/Main/SPLIT.txt or annotations/instances_SPLIT.json."""
    classes: tuple[str, ...] | None = None
    """Class names in the order of their labels; None: those of the data."""
    proposals: Path | None = None
    """Proposal file; the share of objects it covers bounds any detector that uses it."""
    out: Path = Path("runs/check")
    """Folder for check.json, sizes.svg and samples.jpg."""


@dataclass(frozen=True)
class Proposals:
    """Compute the region proposals of a split, on all cores, or read those of others.

    Fast R-CNN takes its proposals from outside; each image is searched once, here. The file is an
    uncompressed .npz with one float32 array (P, 4) for each image id: x1, y1, x2, y2 in pixels of
    the image, 0-based, both ends inclusive. Run it again after an interruption: images that are in
    the file are not searched again. Ends with the share of objects the proposals cover, a bound on
    any detector that uses them. Images that cannot be read are named and have none; exit code 1.
    """

    data: Path
    """Directory of a data set. VOC: JPEGImages, Annotations, ImageSets/Main. COCO: the file
    annotations/instances_SPLIT.json and the images in SPLIT."""
    split: tuple[str, ...] = ("trainval",)
    """One or more splits, e.g. --split train test."""
    out: Path | None = None
    """The file to write; None is proposals.npz in the directory of the data."""
    read: tuple[Path, ...] = ()
    """Files of proposals to put together in place of a search: published selective search (.mat),
    pickles of detectron2 and mmdetection, our own .npz. Files without ids follow the order of
    --split, one for each. With scores --max-boxes keeps the best, of several files it draws."""
    shard: str = "1/1"
    """I/N searches every N-th image from the I-th on, into a file of its own beside that of --out.
    Without it what such files hold is taken over, and the rest is searched."""
    search: Annotated[SearchOptions, tyro.conf.arg(name="")] = field(default_factory=SearchOptions)


@dataclass(frozen=True)
class Eval:
    """Detect on a split and compute average precision, that of PASCAL VOC or of COCO.

    VOC: a match needs IoU >= 0.5 with the best object of its class, areas count both end pixels,
    one object is found once, difficult objects are ignored, classes without objects are "n/a".
    COCO: by pycocotools. Either takes either layout of data. Writes report.html, metrics.json,
    detections.json and, for a server, voc_results/ in VOC's format or, of COCO data,
    coco_results.json in COCO's. These are what a test set without annotations is for: VOC without
    the folder Annotations, a COCO file with an empty list of them.
    """

    run_dir: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Folder of a training run; its checkpoint, data and proposals are used."""
    checkpoint: Path | None = None
    """A checkpoint file, in place of --run."""
    data: Path | None = None
    """VOC or COCO directory; None is the one the detector was trained on."""
    split: str = "test"
    """Split to test on: ImageSets/Main/SPLIT.txt or annotations/instances_SPLIT.json."""
    proposals: Path | None = None
    """Proposal file; None searches as for the training and keeps the result, or stops where that
    cannot be repeated."""
    metric: Metric = "area"
    """Which AP is the headline: area (VOC10 and later), 11point (the paper's VOC07 tables) or coco
    (its twelve numbers; difficult objects of VOC count as crowds)."""
    iou_threshold: float = 0.5
    """IoU a match needs (VOC: 0.5); coco has ten of its own."""
    out: Path | None = None
    """Folder for the results; None is eval-SPLIT in the folder of the run, of best.pt
    best-eval-SPLIT. Where another command has left its results, -2 and so on is added."""
    short_side: int | tuple[int, ...] | None = None
    """Images are scaled to this short side; several make an image pyramid (paper 5.2). None: the
    size or sizes of the training."""
    max_side: int | None = None
    """... unless the long side would pass this; None: as in the training."""
    device: str = "cpu"
    """A torch device: cpu, cuda, cuda:1."""
    detection: Detection = field(default_factory=Detection)


@dataclass(frozen=True)
class Detect:
    """Detect objects on image files.

    Proposals are made on the fly, as they were for the training, or read from --proposals; after a
    training on those of another program give --proposals or --mode. Writes one picture for each
    image with the boxes drawn in, and detections.json with class, score and box; images that cannot
    be read are named at the end, and the exit code is 1. --many is for very many images: a line of
    detections.jsonl for each, at once, or a row in Parquet, without pictures.
    Run it again after an interruption: images that have a line or row are passed over, and one
    that cannot be read, or has proposals of another image, has one that says why. What made them
    stands beside them; with another checkpoint, score, size or search, or with other proposals, it
    stops there.
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, folders of images (the pictures that this command drew there are left out), or
    with --many also text files (.txt) that name an image a line."""
    checkpoint: Path = Path("runs/train/checkpoint.pt")
    """A checkpoint file, or the folder of a training run."""
    out: Path = Path("runs/detect")
    """Folder for the pictures and detections.json. Pictures there that this command did not draw
    are never written over."""
    score_threshold: float | None = None
    """Detections with at most this score are left out. None: 0.5, of SVM scores 0."""
    short_side: int | tuple[int, ...] | None = None
    """Images are scaled to this short side; several make an image pyramid (paper 5.2). None: the
    size or sizes of the training."""
    max_side: int | None = None
    """... unless the long side would pass this; None: as in the training."""
    device: str = "cpu"
    """A torch device: cpu, cuda, cuda:1."""
    proposals: Path | None = None
    """Proposal file (.npz) with every image, by its id: the name without suffix, after folders or
    not, as in photo and day1/photo; of COCO, whose files have it in their names, the folder and the
    id, as in val2017/139. None searches as for the training, or stops where that cannot be
    repeated."""
    mode: Mode | None = None
    """Mode of the selective search; None is that of the training. Other methods have none. After a
    training on proposals of another program it chooses selective search in their place."""
    many: bool = False
    """A line of JSON, or a row, for each image in place of pictures."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """With --many: jsonl is a file, detections.jsonl; parquet a folder, detections, with a file for
    every 4096 images or ten minutes, which is what a kill costs at most. Needs pyarrow."""
    shard: str = "1/1"
    """With --many: I/N works on every N-th image from the I-th on; its file has I and N in its
    name."""


@dataclass(frozen=True)
class Compress:
    """Replace fc6 and fc7 by two smaller layers each, by truncated SVD (paper, section 3.1).

    Nothing is trained. Prints parameters, multiply-adds and the time of the fully connected layers
    before and after. The new checkpoint is for eval and detect; training does not go on from it.
    """

    checkpoint: Path = Path("runs/train/checkpoint.pt")
    """A checkpoint file, or the folder of a training run."""
    out: Path | None = None
    """Folder for the new checkpoint.pt; None is a folder "compressed" beside the old one."""
    fc6: int | None = None
    """Rank of fc6, the singular values that are kept; None is 1024 (paper 4.4)."""
    fc7: int | None = None
    """Rank of fc7; None is 256 (paper 4.4)."""
    energy: float | None = None
    """In place of ranks: the smallest ones that keep this share of the squared singular values."""
    rois: int = 300
    """RoIs of the forward passes that are timed."""
    device: str = "cpu"
    """A torch device: cpu, cuda, cuda:1."""


@dataclass(frozen=True)
class Svm:
    """Train a linear SVM for each class on fc7 and let them score in place of the softmax.

    Paper, section 5.4, table 8: the SVMs of R-CNN on the features of Fast R-CNN. Images and objects
    are those of the training; objects are positives, boxes with IoU below 0.3 negatives, of which
    one pass picks the hard ones (code, tools/train_svms.py, with its numbers). The new checkpoint
    is for eval and detect; training does not go on from it. Needs scikit-learn.
    """

    checkpoint: Path = Path("runs/train/checkpoint.pt")
    """A checkpoint file, or the folder of a training run."""
    out: Path | None = None
    """Folder for the new checkpoint.pt; None is a folder "svm" beside the old one."""
    data: Path | None = None
    """VOC or COCO directory; None is the one the detector was trained on."""
    proposals: Path | None = None
    """Proposal file; None is the one of the training."""
    device: str = "cpu"
    """A torch device: cpu, cuda, cuda:1."""


@dataclass(frozen=True)
class Export:
    """Write a trained detector to one ONNX file, for onnxruntime and others.

    Standard operators alone: MaxRoiPool, NonMaxSuppression and so on. The file takes a prepared
    image and its proposals and gives detections; how images are prepared stands in its metadata
    and is printed. Needs onnx and onnxscript.
    """

    checkpoint: Path = Path("runs/train/checkpoint.pt")
    """A checkpoint file, or the folder of a training run."""
    out: Path | None = None
    """The file to write; None is detector.onnx beside the checkpoint."""
    score_threshold: float | None = None
    """Detections with at most this score are dropped; None is 0.05, and nothing for SVMs."""
    nms_threshold: float = 0.3
    """Of two boxes of a class with more IoU than this, the weaker is dropped (R-CNN, code)."""
    max_detections: int = 100
    """The most in one image."""
    short_side: int | None = None
    """Images are scaled to this short side; None: as in the training."""
    max_side: int | None = None
    """... unless the long side would pass this; None: as in the training."""


@dataclass(frozen=True)
class ReportRuns:
    """Compare runs on one page that opens in any browser without a network.

    Reads metrics.json, log.jsonl and config.json of each folder; what a run has not got is left
    out. Its first test counts: metrics.json of the folder itself, else of its newest eval-SPLIT. A
    folder of a test (runs/a/eval-val) can be named too.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of training runs or tests."""
    out: Path = Path("runs/compare.html")
    """The page to write."""


@dataclass(frozen=True)
class Env:
    """Versions, build and hardware. Paste it into a bug report."""
