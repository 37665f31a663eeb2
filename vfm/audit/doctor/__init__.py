"""Doctor: what is wrong with data, of every task, before anything is trained on it.

The way of `vfm doctor`, from `command.py`:
1. `source.py` reads the data by its layout: records with split, labels, keys and boxes.
2. `vfm.search.image_scan` opens each file once: checksum, header, thumbnails, values for the null score, or why it
   cannot be read.
3. `vfm.search.image_duplicates` finds copies and near-copies, and which of them are leaks; `label_errors.py` doubts
   labels by the features of `features.py`; `facts.py` lists odd files, class names, boxes and outliers; `diagnosis.py`
   joins it all.
4. `page.py` lays it out, and `fix.py` writes a cleaned table.
Kinds of data with checks of their own are added by `extensions.py`.
"""
