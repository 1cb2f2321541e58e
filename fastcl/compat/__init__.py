"""Other packages' names and conventions: change the import, keep the rest.

| here                                      | there                                                               |
|-------------------------------------------|---------------------------------------------------------------------|
| ``fastcl.compat.lightly``                 | ``lightly.loss``                                                    |
| ``fastcl.compat.open_clip``               | ``open_clip.loss``                                                  |
| ``fastcl.compat.pytorch_metric_learning`` | ``pytorch_metric_learning.losses``                                  |
| ``fastcl.compat.torchvision.convert``     | a torchvision or lightly pipeline, turned into ``fastcl.transforms`` |
"""
