"""Every op's signature, on one screen.

They stand in Python, not in C++, because the package also works where nothing native was built.
``csrc/<op>/<op>_cpu_ops.cpp`` implements them; ``fastcl/ops/<op>.py`` holds the public function and the reference.
"""

SCHEMAS: dict[str, str] = {
    "similarity_lse": (
        "(Tensor q, Tensor? k, Tensor scale, Tensor? q_group, Tensor? k_group, bool columns, str precision,"
        " SymInt keep=0) -> (Tensor row_lse, Tensor col_lse, Tensor kept)"
    ),
    "similarity_lse_backward": (
        "(Tensor grad_row, Tensor grad_col, Tensor q, Tensor? k, Tensor scale, Tensor? q_group, Tensor? k_group,"
        " Tensor row_lse, Tensor col_lse, bool need_q, bool need_k, str precision, Tensor? kept=None)"
        " -> (Tensor grad_q, Tensor grad_k, Tensor grad_scale)"
    ),
    "ntxent": ("(Tensor z0, Tensor z1, Tensor scale, str precision, SymInt keep=0) -> (Tensor losses, Tensor kept)"),
    "ntxent_backward": (
        "(Tensor grad_losses, Tensor z0, Tensor z1, Tensor scale, Tensor losses, str precision, Tensor? kept=None)"
        " -> (Tensor grad_z, Tensor grad_scale)"
    ),
    "int8_pack_weight": (
        "(Tensor weight, str kernel, Tensor? weight_scale=None, Tensor? x_range=None, Tensor? x_multiplier=None,"
        " Tensor? outlier_columns=None, Tensor? outlier_weight=None, str mode='dynamic', str activation='none')"
        " -> Tensor"
    ),
    "int8_linear_packed": "(Tensor x, Tensor packed, Tensor? bias, int n) -> Tensor",
    "int8_linear": (
        "(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? packed, Tensor? x_range,"
        " Tensor? x_multiplier, Tensor? outlier_columns, Tensor? outlier_weight, str mode, str activation) -> Tensor"
    ),
    "augment_sample": (
        "(Tensor recipe, Tensor index, SymInt seed, SymInt epoch, SymInt view, SymInt height, SymInt width,"
        " SymInt out_height, SymInt out_width) -> Tensor"
    ),
    "augment_apply": (
        "(Tensor images, Tensor params, SymInt height, SymInt width, str interpolation, float[] fill, float[] mean,"
        " float[] std, ScalarType dtype, str resize='bilinear', float[] erase=[]) -> Tensor"
    ),
    "augment_apply_out": (
        "(Tensor images, Tensor params, str interpolation, float[] fill, float[] mean, float[] std, Tensor(a!) out,"
        " str resize='bilinear', float[] erase=[]) -> ()"
    ),
    "augment_views": (
        "(Tensor images, Tensor[] params, SymInt[] heights, SymInt[] widths, str interpolation, float[] fill,"
        " float[] mean, float[] std, ScalarType dtype, str resize, float[] erase) -> Tensor[]"
    ),
    "augment_views_out": (
        "(Tensor images, Tensor[] params, str interpolation, float[] fill, float[] mean, float[] std, str resize,"
        " float[] erase, Tensor(a!)[] out) -> ()"
    ),
    "augment_sample_ragged": (
        "(Tensor recipe, Tensor index, Tensor shapes, SymInt seed, SymInt epoch, SymInt view, SymInt out_height,"
        " SymInt out_width) -> Tensor"
    ),
    "augment_views_ragged": (
        "(Tensor data, Tensor offsets, Tensor shapes, Tensor[] params, str interpolation, float[] fill, float[] mean,"
        " float[] std, str resize, float[] erase, Tensor(a!)[] out) -> ()"
    ),
    "int8_conv2d": (
        "(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? packed, Tensor? x_range,"
        " Tensor? x_multiplier, Tensor? outlier_columns, Tensor? outlier_weight, str mode, int[] stride,"
        " int[] padding, int[] dilation, str activation) -> Tensor"
    ),
    "int8_conv2d_packed": (
        "(Tensor x, Tensor packed, Tensor? bias, int n, int[] kernel, int[] stride, int[] padding, int[] dilation,"
        " Tensor? reader=None) -> Tensor"
    ),
    "max_pool2d": "(Tensor x, int[] rows, int[] columns) -> Tensor",
}
