"""The data sets: images of a folder or zip, digits, dead leaves, crops of photographs, FFHQ, LSUN Church, CIFAR-10."""

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from warm_lightning.data.datamodule import ImageDataModule
from warm_lightning.data.decode import (
    UNCHANGED,
    CropResize,
    Filter,
    Resize,
    block_means,
    check_resize,
    decode_pixels,
    huge_images_are_errors,
    open_image,
)
from warm_lightning.data.image_set import ImageSet, check_rgb
from warm_lightning.data.leaves import FIRST_HELD_OUT, RESOLUTIONS, EndlessLeaves, read_leaves
from warm_lightning.data.listing import find_metadata
from warm_lightning.data.sources import Source, is_missing
from warm_lightning.distributed import progress
from warm_lightning.errors import UserError, check, error_text
from warm_lightning.paths import PathText, expand
from warm_lightning.rng import key
from warm_lightning.types import Batch


class ImageFolder(ImageDataModule):
    """A data set of all images (png, jpg, jpeg, webp, bmp) in a folder or zip, in the order of their names.

    First-level folders are classes; images outside of such folders have no class. If the first-level folders are
    `train` and one of `test`, `val`, `valid`, `validation` and `held_out`, they are the splits. One outer folder
    that contains all the others is skipped. If there is a `dataset.json` above all images, as in EDM's data sets, the
    folders have no meaning: this file gives the classes, and there are no splits, unless each split has its own file.
    A `dataset.json` anywhere else is refused.

    Args:
        path: the folder or zip.
        held_out_path: a folder or zip of held-out images with the same classes, used instead of those in `path`.
        resolution: height and width that the images must have; by default any.
        resize: "area" or "lanczos" to resize square images to `resolution` when they are read; with "none" another size
            is an error. "area" takes the mean over the area of each new pixel. LSUN's images are cropped first.
        cache: whether every process keeps all images in memory. This is the fastest, and the default because most
            sets fit: 70,000 images of 64×64 are 0.86 GB. If false, the workers of the loader decode each image when
            it is needed: training sees the same bits, but needs `num_workers`.
        **kwargs: the arguments of `ImageDataModule`.
    """

    lmdb_resize: ClassVar[CropResize] = UNCHANGED
    """The cropping and resizing of images from an LMDB, which have many sizes in LSUN."""

    def __init__(
        self,
        path: PathText,
        held_out_path: PathText | None = None,
        resolution: int | None = None,
        resize: Resize = "none",
        cache: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_resize(resolution, resize)
        self.resize = resize
        self.path = path
        self.held_out_path = held_out_path
        self.required_resolution = resolution
        self.cache = cache

    @cached_property
    def source(self) -> Source:
        """The reader for `path` and the list of its images, made once."""
        self.check_path()
        return Source.open(self.path)

    def check_path(self) -> None:
        """Check that `path` exists, in data sets that can say where to download it.

        Raises:
            UserError: nothing is at `path`; the message says how to get the images.
        """

    def prepare_data(self) -> None:
        """List the images at `path`, so that an error in the path is reported early."""
        _ = self.source

    def load(self, split: str) -> ImageSet | None:
        """Read one split; see `ImageDataModule.load`."""
        source = self.source
        if split == "held_out" and self.held_out_path is not None:
            source = Source.open(self.held_out_path, source.splits["train"].class_names)
            # `held_out_path` may be a plain folder, or may itself have splits.
            split = "held_out" if "held_out" in source.splits else "train"
        return source.read(split, self.required_resolution, cache=self.cache, resize=self._resize_of(source))

    @property
    def resized(self) -> CropResize:
        """See `ImageDataModule.resized`; of the training images."""
        return self._resize_of(self.source)

    def _resize_of(self, source: Source) -> CropResize:
        usual = self.lmdb_resize if source.is_lmdb else UNCHANGED
        return usual if self.resize == "none" else CropResize(usual.crop, self.required_resolution, self.resize)


NUM_DIGITS = 1797


class Digits(ImageDataModule):
    """The 1,797 grey 8×8 images of digits in 10 classes from scikit-learn's `load_digits`.

    Their 17 grey levels v in 0 … 16 become round(v·255/16).

    Args:
        held_out: number of images that are held out, 0 … 1,796; the choice is the same in every run.
        **kwargs: the arguments of `ImageDataModule`.
    """

    def __init__(self, *, held_out: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check(0 <= held_out < NUM_DIGITS, f"held_out must be from 0 to {NUM_DIGITS - 1}, not {held_out}")
        self.held_out = held_out

    def load(self, split: str) -> ImageSet | None:
        """Read one split, in scikit-learn's order; see `ImageDataModule.load`."""
        if split == "held_out" and self.held_out == 0:
            return None
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = torch.randperm(NUM_DIGITS, generator=torch.Generator().manual_seed(key(0, "digits")))
        train = NUM_DIGITS - self.held_out
        index = (order[:train] if split == "train" else order[train:]).sort().values
        images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)[:, None]
        return ImageSet(images[index], torch.from_numpy(digits.target)[index], tuple("0123456789"))


class DeadLeaves(ImageDataModule):
    """Images of opaque shapes that hide each other, RGB, in ten classes, with the power spectrum of photographs.

    They need no download: they are drawn when first needed, and cached. The classes are five shapes, each with fine
    and with coarse leaves; image k is a function of k and the seed alone. See `warm_lightning.data.leaves`.

    Args:
        resolution: height and width: 8, 16, 32 or 64.
        num_images: number of training images; scores compare with these.
        held_out: number of held-out images, which have other indices.
        endless: whether training goes on to images that it has not seen instead of repeating the first
            `num_images`. They are drawn when they are needed, in `num_workers` processes.
        leaves_seed: of all images.
        **kwargs: the arguments of `ImageDataModule`.
    """

    def __init__(
        self,
        resolution: int = 16,
        *,
        num_images: int = 50_000,
        held_out: int = 10_000,
        endless: bool = False,
        leaves_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check(resolution in RESOLUTIONS, f"resolution must be one of {RESOLUTIONS}, not {resolution}")
        check(1 <= num_images <= FIRST_HELD_OUT, f"num_images must be from 1 to {FIRST_HELD_OUT}, not {num_images}")
        check(held_out >= 0, f"held_out must be at least 0, not {held_out}")
        check(0 <= leaves_seed < 2**63, f"leaves_seed must be from 0 to 2**63 - 1, not {leaves_seed}")
        check(
            not (endless and self.xflip),
            "xflip shows images again, and endless never does: set xflip or endless to false",
        )
        self.side = resolution
        self.num_images = num_images
        self.held_out = held_out
        self.endless = endless
        self.leaves_seed = leaves_seed

    def prepare_data(self) -> None:
        """Draw all images that are not in the cache. Lightning calls this in one process only."""
        self.train_images()
        self.held_out_images()

    def load(self, split: str) -> ImageSet | None:
        """Read one split; see `ImageDataModule.load`."""
        if split == "train":
            return read_leaves(self.side, 0, self.num_images, self.leaves_seed)
        return read_leaves(self.side, FIRST_HELD_OUT, self.held_out, self.leaves_seed) if self.held_out else None

    def training_batches(self, seed: int) -> Dataset[Batch]:
        """The training batches by position; in endless training, image p at position p for every training seed."""
        return EndlessLeaves(self.side, self.leaves_seed) if self.endless else super().training_batches(seed)

    def identity(self) -> dict[str, Any]:
        """See `ImageDataModule.identity`; with whether training is endless, which changes its images."""
        return super().identity() | {"endless": self.endless}


class Crops(ImageDataModule):
    """Random crops of photographs of any size, RGB, without classes: small images with the spectrum of photographs.

    They are for measurements such as `warm spectrum`; the crops of a few photographs overlap, so that a model learns
    these photographs. All places in all photographs are equally probable, and image k is a function of the
    photographs, k and the seed alone.

    Args:
        path: folder or zip of photographs, of which `train` is used where it has splits; by default the two that
            scikit-learn has, of a temple and of a flower (640×427; by the Flickr users danielbuechele and vultilion,
            CC BY 2.0).
        resolution: height and width of the images.
        shrink: each pixel is the mean of shrink × shrink pixels of a photograph, which also removes traces of JPEG.
        num_images: number of images.
        crops_seed: of all crops.
        **kwargs: the arguments of `ImageDataModule`.
    """

    def __init__(
        self,
        path: PathText | None = None,
        *,
        resolution: int = 16,
        shrink: int = 4,
        num_images: int = 10_000,
        crops_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        least = {"resolution": resolution, "shrink": shrink, "num_images": num_images}
        for name, value in least.items():
            check(value >= 1, f"{name} must be at least 1, not {value}")
        check(0 <= crops_seed < 2**63, f"crops_seed must be from 0 to 2**63 - 1, not {crops_seed}")
        self.path = path
        self.side = resolution
        self.shrink = shrink
        self.num_images = num_images
        self.crops_seed = crops_seed

    def photographs(self) -> list[np.ndarray]:
        """Read all photographs, uint8 [H, W, 3] each.

        Raises:
            UserError: one cannot be read, or is smaller than a crop.
        """
        if self.path is None:
            from sklearn.datasets import load_sample_images

            named = [("scikit-learn's photograph", image) for image in load_sample_images().images]
        else:
            source = Source.open(self.path)
            reader, names = source.reader, source.splits["train"].names
            with huge_images_are_errors():
                shown = progress(names, "reading photographs")
                decoded = [decode_pixels(open_image(reader, name), reader, name).convert("RGB") for name in shown]
            named = [(str(reader.locate(n)), np.asarray(image)) for n, image in zip(names, decoded, strict=True)]
        side = self.side * self.shrink
        for name, image in named:
            height, width = image.shape[:2]
            check(
                min(height, width) >= side,
                f"{name} is {width}×{height}, and a crop takes {side}×{side} pixels (resolution × shrink): lower "
                "--data.shrink or --data.resolution, or remove it",
            )
        return [image for _, image in named]

    def load(self, split: str) -> ImageSet | None:
        """Cut out all images; there is no held-out split. See `ImageDataModule.load`."""
        if split != "train":
            return None
        photographs, side = self.photographs(), self.side * self.shrink
        places = [(p.shape[0] - side + 1, p.shape[1] - side + 1) for p in photographs]
        ends = np.cumsum([height * width for height, width in places])
        images = np.empty((self.num_images, 3, self.side, self.side), np.uint8)
        for k in progress(range(self.num_images), "crops"):
            rng = np.random.Generator(np.random.Philox(key=self.crops_seed, counter=[0, 0, 0, k]))
            place = int(rng.integers(ends[-1]))
            number = int(np.searchsorted(ends, place, side="right"))
            top, left = divmod(place - (int(ends[number - 1]) if number else 0), places[number][1])
            images[k] = block_means(photographs[number][top : top + side, left : left + side], self.shrink)
        return ImageSet.without_classes(torch.from_numpy(images))


class FFHQ(ImageFolder):
    """FFHQ at 64×64: RGB images without classes, usually in EDM's format.

    Args:
        path: the zip or folder made by `warm dataset` or by EDM's tool, or any other zip or folder of 64×64 images.
        held_out_path: a zip or folder of held-out images.
        cache: see `ImageFolder`; in memory by default, which takes 0.86 GB in each process.
        **kwargs: the arguments of `ImageDataModule`.
    """

    def __init__(
        self, path: PathText, held_out_path: PathText | None = None, cache: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(path, held_out_path, resolution=64, cache=cache, **kwargs)

    def check_path(self) -> None:
        """Check that `path` exists; the error says how to get the images."""
        check(
            not is_missing(self.path),
            f"{self.path}: no such file: download FFHQ's images1024x1024 and make it with "
            f"`warm dataset images1024x1024 {self.path} --resolution 64`",
        )

    def load(self, split: str) -> ImageSet | None:
        """Read one split; see `ImageDataModule.load`."""
        return check_rgb(super().load(split), f"{self.path}: FFHQ's images are RGB")


class LSUNChurch(ImageFolder):
    """LSUN Church at 128×128: RGB images without classes, from LSUN's own LMDB or in EDM's format.

    The shorter side of the images in the LMDB has 256 pixels. Each time such an image is read, it is cropped to the
    largest centred square and resampled to 128 by Lanczos' filter. `warm dataset` does this once, with the same bits.

    Args:
        path: the folder `church_outdoor_train_lmdb`, or a zip or folder of 128×128 images.
        held_out_path: an LMDB, zip or folder of held-out images, such as `church_outdoor_val_lmdb`.
        cache: see `ImageFolder`. By default the images are not kept in memory, where they would take 6.2 GB in every
            process.
        **kwargs: the arguments of `ImageDataModule`.
    """

    lmdb_resize: ClassVar[CropResize] = CropResize("center", 128)

    def __init__(
        self, path: PathText, held_out_path: PathText | None = None, cache: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(path, held_out_path, resolution=128, cache=cache, **kwargs)

    def check_path(self) -> None:
        """Check that `path` exists; the error says how to get the images."""
        check(
            not is_missing(self.path),
            f"{self.path}: no such folder: download LSUN's church_outdoor_train_lmdb.zip, unpack it, and give the "
            "folder church_outdoor_train_lmdb",
        )

    def load(self, split: str) -> ImageSet | None:
        """Read one split; see `ImageDataModule.load`."""
        return check_rgb(super().load(split), f"{self.path}: LSUN's images are RGB")


CIFAR_SIZE = 32


class CIFAR10(ImageDataModule):
    """CIFAR-10: 50,000 training images and 10,000 test images, which are the held-out split; RGB, 32×32, 10 classes.

    At another resolution, such as 16, each image is resized when it is read.

    Args:
        path: folder or zip with `train/<class>/*.png|jpg` and `test/<class>/*`, the archive for Python, or a zip of the
            training images in EDM's format. None for torchvision's files.
        root: folder for torchvision's files, which are downloaded if they are not there yet.
        held_out_path: the test images, if `path` is in EDM's format, which has no splits.
        cache: see `ImageFolder`; in memory by default, which takes 0.15 GB in each process. torchvision's files are
            always kept in memory.
        resolution: height and width of the images.
        resize: the filter for another resolution than 32: "area", the mean over the area of each new pixel, or
            "lanczos".
        **kwargs: the arguments of `ImageDataModule`.
    """

    def __init__(
        self,
        path: PathText | None = None,
        root: PathText = "data",
        held_out_path: PathText | None = None,
        cache: bool = True,
        *,
        resolution: int = CIFAR_SIZE,
        resize: Filter = "area",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check(resolution >= 1, f"resolution must be at least 1, not {resolution}")
        self.path = path
        self.root = root
        same = resolution == CIFAR_SIZE
        self._resized = UNCHANGED if same else CropResize("none", resolution, resize)
        kept: Resize = "none" if same else resize
        self.files = None if path is None else ImageFolder(path, held_out_path, resolution, kept, cache)

    @property
    def resized(self) -> CropResize:
        """See `ImageDataModule.resized`."""
        return self._resized

    def prepare_data(self) -> None:
        """Download the files to `root` if needed. Lightning calls this in one process only."""
        if self.files is not None:
            self.files.prepare_data()
            return
        from torchvision import datasets

        try:
            datasets.CIFAR10(expand(self.root), download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"CIFAR-10 cannot be downloaded to {self.root} ({error_text(error)}): put "
                f"{datasets.CIFAR10.filename} there, or set `path` to a folder or zip of its images"
            ) from error

    def load(self, split: str) -> ImageSet | None:
        """Read one split; see `ImageDataModule.load`. In EDM's format there may be no held-out split."""
        if self.files is None:
            return self._load_torchvision(split)
        images = self.files.load(split)
        reader = self.files.source.reader
        if images is None and not find_metadata(reader, reader.names()):
            raise UserError(f"{self.path} has no test images: it must hold the folders train and test")
        return check_rgb(images, f"{self.path}: CIFAR-10's images are RGB")

    def _load_torchvision(self, split: str) -> ImageSet:
        from torchvision import datasets

        try:
            data = datasets.CIFAR10(expand(self.root), train=split == "train")
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"CIFAR-10 is not in {self.root} ({error_text(error)}): call prepare_data() to download it, or "
                "set `path` to a folder or zip of its images"
            ) from error
        pixels = np.stack([np.asarray(self.resized(Image.fromarray(image))) for image in data.data])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        return ImageSet(images, torch.tensor(data.targets), tuple(data.classes))
