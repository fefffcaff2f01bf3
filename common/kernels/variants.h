/* variants.h - inside common/kernels only: the prototype of every kernel of every variant, from kernels.def. */
#ifndef MOESAIC_KERNELS_VARIANTS_H
#define MOESAIC_KERNELS_VARIANTS_H

#include "common/kernels/kernels.h"

/* The type of a table member without its pointer: it declares the function. */
#define KERNEL_TYPE(name) __typeof__(*((const struct kernels *)0)->name)

#define KERNEL(name, widest) extern KERNEL_TYPE(name) name##_ref;
#include "common/kernels/kernels.def"
#if defined(__x86_64__)
#define KERNEL(name, widest) extern KERNEL_TYPE(name) name##_avx2;
#include "common/kernels/kernels.def"
#define KERNEL(name, widest) extern KERNEL_TYPE(name) name##_##widest;
#include "common/kernels/kernels.def"
#endif

#endif
