"""Other packages' losses under their own names: change the import, keep the rest.

``fastcl.compat.torchvision.convert`` turns a torchvision or lightly pipeline into ``fastcl.transforms``.

====================================== ==========================================
``fastcl.compat.lightly``              ``lightly.loss``
``fastcl.compat.open_clip``            ``open_clip.loss``
``fastcl.compat.pytorch_metric_learning`` ``pytorch_metric_learning.losses``
====================================== ==========================================
"""
