"""`vfm tune`: the best model that a few labelled images give within some minutes.

`command.tune` is the way through: `images` opens the labelled images, `frozen` judges heads on frozen features by
cross-validation, `finetuned` fine-tunes as far as the time of `clock` goes, `selection` compares both and chooses,
`finish` fits the chosen model on all images, `page` and `words` say what came out.
"""
