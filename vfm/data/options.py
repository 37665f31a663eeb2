"""Options that every data module takes: batches, workers, seed, folds, bit depth, balance."""

from typing import TypedDict

from vfm.data.balance import Balance


class LoaderOptions(TypedDict, total=False):
    """The `**options` of a data module's constructor; a module states its own defaults in `option_defaults`.

    Args:
        batch_size: Images in a batch, on each process. null: 16 where fewer than 1,000 are to train, else 32; 8 or 16
            with boxes; with --trainer.minutes fewer if so many left few steps.
        num_workers: Processes that open images, for each training process; by default one less than its share of the
            cores, at most 8.
        seed: Seed of order, augmentation and splits, and of the images where they are generated.
        folds: Number of folds for cross-validation: `vfm fit` trains as many models, each of which is judged by the
            fold that it did not see, and then one on all images. Folds are drawn from train and a val split that is
            drawn; a val split that the data states stays out of them, and test is never touched.
        fold: The fold that takes the place of val, from 0, where one of them is trained by itself.
        bit_depth: Bits that the values of images of 16 or 32 bits use, such as 12, so that the largest of them is
            white; by default 16. It becomes part of the model. Images of 8 bits are read as they are.
        max_pixels: Pixels up to which photos are opened; above the double they are refused. By default 89,478,485.
        balance: What comes equally often in training: label, or group for each label of each value of group_columns; a
            head that is solved weighs images instead. By default each image comes once an epoch.
        balance_power: How far `balance` goes, above 0 up to 1: exponent of the weights. 0.5 costs frequent groups less.
    """

    batch_size: int | None
    num_workers: int | None
    seed: int
    folds: int | None
    fold: int | None
    bit_depth: int | None
    max_pixels: int | None
    balance: Balance
    balance_power: float


LOADER_DEFAULTS: LoaderOptions = {
    "batch_size": None,
    "num_workers": None,
    "seed": 0,
    "folds": None,
    "fold": None,
    "bit_depth": None,
    "max_pixels": None,
    "balance": "none",
    "balance_power": 1.0,
}
