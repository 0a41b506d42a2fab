"""Images of Hugging Face's `datasets` library: parquet files, data sets saved to disk, and those of the Hub."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from warm_lightning.data.datamodule import ImageDataModule
from warm_lightning.data.decode import CropResize, Resize, check_resize
from warm_lightning.data.image_set import ImageSet
from warm_lightning.data.listing import MAX_CLASS, Listing
from warm_lightning.data.readers import Reader
from warm_lightning.data.sources import Source, is_missing
from warm_lightning.errors import UserError, check, error_text
from warm_lightning.paths import PathText, expand


class HuggingFaceImages(ImageDataModule):
    """A data set of the `datasets` library (`pip install 'warm-lightning[datasets]'`), in the order of its rows.

    The encoded images are memory-mapped, and decoded by this suite as the files of a folder or zip are: equal files in
    an equal order train the same bits. The library's own settings hold: HF_HOME is the place of its cache, where it
    also keeps an Arrow copy of parquet files, and HF_HUB_OFFLINE leaves out the Hub.

    Args:
        dataset: a folder of parquet files (or of others that the library reads), one parquet file, a folder that
            `save_to_disk` wrote, or the name of a data set on the Hub.
        config_name: the configuration (subset) of the data set, if it has several.
        split: the training images; the library's slices, such as `train[:90%]`, work as well, but not on what
            `save_to_disk` wrote.
        held_out_split: the held-out images; none by default.
        image_column: the column with the encoded images. By default the only one that holds images.
        label_column: the column with the classes: the library's class labels, whole numbers from 0, or names. By
            default there are no classes.
        revision: branch, tag or commit of a data set on the Hub.
        resolution: height and width that the images must have; by default any.
        resize: "area" or "lanczos" to resize square images to `resolution` when they are read; with "none" another size
            is an error. "area" takes the mean over the area of each new pixel.
        crop: "center" cuts out the largest centred square before that; with "none" other shapes are an error.
        cache: whether every process keeps all images in memory, decoded. By default the workers of the loader decode
            each image when it is needed: training sees the same bits, but needs `num_workers`.
        **kwargs: the arguments of `ImageDataModule`.
    """

    def __init__(
        self,
        dataset: PathText,
        *,
        config_name: str | None = None,
        split: str = "train",
        held_out_split: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        revision: str | None = None,
        resolution: int | None = None,
        resize: Resize = "none",
        crop: Literal["none", "center"] = "none",
        cache: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_resize(resolution, resize)
        check(split != held_out_split, f"split and held_out_split are both {split}: give the held-out images their own")
        self.dataset = dataset
        self.config_name = config_name
        self.training_split = split
        self.held_out_split = held_out_split
        self.image_column = image_column
        self.label_column = label_column
        self.revision = revision
        self.required_resolution = resolution
        self.resize = resize
        self.crop: Literal["none", "center"] = crop
        self.cache = cache

    @property
    def path(self) -> Path | None:
        """The folder or file of the data set; None for one of the Hub."""
        return None if is_missing(self.dataset) else expand(self.dataset)

    @property
    def resized(self) -> CropResize:
        """See `ImageDataModule.resized`."""
        if self.resize == "none":
            return CropResize(self.crop)
        return CropResize(self.crop, self.required_resolution, self.resize)

    @cached_property
    def source(self) -> Source:
        """The reader of the data set and the list of its images by split, made once."""
        names = {"train": self.training_split, "held_out": self.held_out_split}
        of_splits = {split: name for split, name in names.items() if name is not None}
        rows = open_splits(self.dataset, self.config_name, self.revision, list(of_splits.values()))
        columns, listings = {}, {}
        classes: tuple[str, ...] | None = None
        for split, name in of_splits.items():
            where = f"the split {name} of {self.dataset}"
            check(len(rows[name]) > 0, f"{where} holds no images: choose another")
            columns[name] = rows[name].select_columns([find_image_column(rows[name], self.image_column, where)])
            labels, classes = read_label_column(rows[name], self.label_column, classes, where)
            listings[split] = Listing(tuple(f"{name}/{row}" for row in range(len(rows[name]))), labels, classes)
        return Source(RowReader(Path(self.dataset), columns), listings)

    def prepare_data(self) -> None:
        """Download the data set if needed, and make its Arrow copy. Lightning calls this in one process only."""
        _ = self.source

    def load(self, split: str) -> ImageSet | None:
        """Read one split; see `ImageDataModule.load`."""
        return self.source.read(split, self.required_resolution, cache=self.cache, resize=self.resized)


# ---- the images


class RowReader(Reader):
    """The encoded images in a column of each split, which stay memory-mapped; their names are SPLIT/ROW.

    Args:
        path: of the data set, or its name, for messages.
        columns: a `datasets.Dataset` of one column by split.
    """

    advice = "add --data.crop center --data.resolution {size} --data.resize area"

    def __init__(self, path: Path, columns: Mapping[str, Any]) -> None:
        super().__init__(path)
        self._rows = dict(columns)
        # Of the Arrow table: the library's own indexing takes 50 µs more for each image.
        self._columns = {split: rows.data.column(0) for split, rows in columns.items()}

    def __reduce__(self) -> tuple[type[Reader], tuple[Any, ...]]:
        return type(self), (self.path, self._rows)  # the library pickles the paths of memory-mapped files

    def names(self) -> list[str]:
        return [f"{split}/{row}" for split, column in self._columns.items() for row in range(len(column))]

    def read(self, name: str) -> bytes:
        split, _, row = name.rpartition("/")
        value = self._columns[split][int(row)]
        fields = value if isinstance(value, Mapping) else {"bytes": value}
        content, path = fields.get("bytes"), fields.get("path")
        if content is not None and content.is_valid:
            buffer = content.as_buffer()
            self.check_size(name, buffer.size)
            return bytes(buffer)
        file = path.as_py() if path is not None else None
        check(file is not None, f"{self.locate(name)} is empty: leave this row out")
        check(
            Path(str(file)).is_absolute(),
            f"{self.locate(name)} is not in the data set, but at {str(file)[:80]}: put the images into it with "
            "save_to_disk, and give that folder",
        )
        return self.read_file(Path(str(file)), name)

    def locate(self, name: str) -> str:
        split, _, row = name.rpartition("/")
        return f"image {row} of the split {split} of {self.path}"


# ---- data sets, and their columns


SAVED = ("state.json", "dataset_dict.json")
"""Files of `save_to_disk`: of one split, and of several."""


def open_splits(name: str, config_name: str | None, revision: str | None, splits: list[str]) -> dict[str, Any]:
    """Open splits of a data set, each a memory-mapped `datasets.Dataset`; see `HuggingFaceImages`.

    Raises:
        UserError: the library is not installed, or cannot open the data set, or that has no such split.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("HuggingFaceImages needs datasets: pip install 'warm-lightning[datasets]'") from error
    path = expand(name)
    on_hub, is_saved = is_missing(path), any((path / file).is_file() for file in SAVED)
    here = f"{name} is on this machine, and has none: leave it out"
    check(on_hub or revision is None, f"revision {revision}: {here}")
    check(config_name is None or not (is_saved or path.is_file()), f"config_name {config_name}: {here}")
    try:
        if is_saved:
            return _saved_splits(datasets.load_from_disk(str(path)), name, splits)
        if path.is_file():
            builder = datasets.load_dataset_builder("parquet", data_files={"train": str(path)})
        else:
            builder = datasets.load_dataset_builder(
                name if on_hub else str(path.resolve()), config_name, revision=revision
            )
        builder.download_and_prepare()
        # Without the Hub, the library takes the latest copy in its cache, of whatever revision.
        cached = type(builder).__module__.startswith("datasets.packaged_modules.cache")
        check(
            revision is None or not cached or builder.hash == revision,
            f"{name}: the Hub cannot be reached, and the cache has the revision {builder.hash}, not {revision}: go "
            "online, or give the one that is there",
        )
        return {split: builder.as_dataset(split=split) for split in splits}
    except (UserError, MemoryError):
        raise
    except Exception as error:  # the library raises almost any exception for a wrong name, a full disk, damaged files
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = error_text(cause if isinstance(cause, Exception) else error, 300).rstrip(".")
        raise UserError(
            f"{name}: cannot be opened ({reason}); a data set is a folder of parquet files, a folder that save_to_disk "
            "wrote, or the name of one on the Hub or in the library's cache"
        ) from error


def _saved_splits(saved: Any, name: str, splits: list[str]) -> dict[str, Any]:
    """Splits of what `save_to_disk` wrote: by name, or a single one, which may have no name."""
    there = dict(saved) if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    for split in splits:
        check(split in there, f"{name} has no split {split}: it has {', '.join(sorted(there))}")
    return {split: there[split] for split in splits}


def find_image_column(rows: Any, column: str | None, where: str) -> str:
    """The name of the column with the encoded images.

    Raises:
        UserError: there is no such column, or several and none is named.
    """
    images = [name for name, feature in rows.features.items() if _holds_files(feature)]
    there = f"has images in {', '.join(images) or 'none'} of its columns {', '.join(rows.column_names)}"
    if column is None:
        check(len(images) == 1, f"{where} {there}: choose one with --data.image_column")
        return images[0]
    check(
        column in images, f"{where} has no images in a column {column}; it {there}: choose another --data.image_column"
    )
    return column


def _holds_files(feature: Any) -> bool:
    """Whether the values of a column are encoded images: the library's images, or bytes, also under that name."""
    if isinstance(feature, dict):
        feature = feature.get("bytes")
    return type(feature).__name__ == "Image" or getattr(feature, "dtype", None) in ("binary", "large_binary")


def read_label_column(
    rows: Any, column: str | None, classes: tuple[str, ...] | None, where: str
) -> tuple[Tensor, tuple[str, ...]]:
    """The classes of all rows, int64 [N], and the name of each class; zeros and no names where there is no column.

    Args:
        rows: a split.
        column: its name; None for no classes.
        classes: the names of the classes if the training images determine them; None for those of these rows.
        where: the split, for messages.

    Raises:
        UserError: there is no such column, or it holds something else, or classes that the training images lack.
    """
    if column is None:
        return torch.zeros(len(rows), dtype=torch.int64), ()
    check(column in rows.column_names, f"{where} has no column {column}: it has {', '.join(rows.column_names)}")
    values = rows.data.column(column).to_pylist()
    bad = next((row for row, value in enumerate(values) if not _is_class(value)), None)
    check(
        bad is None,
        f"{where}: {column} of row {bad} is {str(values[bad or 0])[:40]}, and a class is a name or a number from 0 to "
        f"{MAX_CLASS}: choose another --data.label_column, or leave such rows out",
    )
    own: list[str] | None = getattr(rows.features[column], "names", None)
    named = [value if isinstance(value, str) else own[value] if own else str(value) for value in values]
    if classes is None:
        numbers = isinstance(values[0], int)
        classes = tuple(own or (map(str, range(max(values) + 1)) if numbers else sorted(set(named))))
    index = {name: i for i, name in enumerate(classes)}
    unknown = next((name for name in named if name not in index), None)
    check(unknown is None, f"{where}: {column} has the class {unknown}, which the training images lack: leave it out")
    return torch.tensor([index[name] for name in named]), classes


def _is_class(value: Any) -> bool:
    return type(value) is str or (type(value) is int and 0 <= value <= MAX_CLASS)
