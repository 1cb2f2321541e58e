// The maths of NT-Xent that CPU and GPU share.
#pragma once

#include <math.h>  // with the overloads that nvcc has for the device

#include "common/portable.h"

namespace fastcl {

// log(1 + e^margin), margin being log sum of e^negatives - positive: exact where it is small.
template <class T>
FASTCL_HD inline T ntxent_loss(T margin) {
  return (margin > T(0) ? margin : T(0)) + log1p(exp(-fabs(margin)));
}

// d loss / d positive = softmax(positive) - 1.
template <class T>
FASTCL_HD inline T ntxent_positive_gradient(T loss) {
  return expm1(-loss);
}

}  // namespace fastcl
