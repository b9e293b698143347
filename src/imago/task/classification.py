"""Classification: predict the class of each image."""

from imago.task.base import ImageTask


class ClassificationTask(ImageTask):
    """Predict the labels of the data, one logit for each class: the objective of `ImageTask` as it stands."""
