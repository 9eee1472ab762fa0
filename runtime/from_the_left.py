"""Under torch.compile `weight @ x`, where `weight` only stands for a tensor, is a product from the left.

For an operator whose left operand is no tensor torch's tracer exchanges the operands and looks up the
function that takes them so. It knows those of `-` and `/`, and for want of one of `@` calls
`Tensor.matmul(x, weight)`: a product from the other side, which only shapes can tell, and of square matrices
not even these. This tells the tracer; it is imported after that (`after_import`).
"""

from __future__ import annotations

import operator

from torch import Tensor
from torch._dynamo.variables import builtin

_REVERSED = getattr(builtin, "BUILTIN_TO_TENSOR_RFN_MAP", {})
for _product in (operator.matmul, operator.imatmul):
    _REVERSED.setdefault(_product, Tensor.__rmatmul__)
