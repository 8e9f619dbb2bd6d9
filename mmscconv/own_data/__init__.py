"""From a folder of annotated images to a config that trains: the steps behind ``tools/own_dataset.py``.

globox reads the boxes of VOC and YOLO files and converts their coordinates. It was
chosen over supervision and datumaro (versions 2.9, 0.31 and 1.13 were compared):

- globox parses a single object or line, so one broken line costs one box; supervision
  reads whole folders, and one broken file ends the reading.
- supervision orders the corners of a reversed box and widens VOC boxes by a pixel,
  which makes a box without size one of a pixel.
- datumaro pins Pillow, pandas, pyarrow and fourteen other packages to exact ranges
  that do not fit beside OpenMMLab's; globox needs numpy, rich and tqdm.
"""
