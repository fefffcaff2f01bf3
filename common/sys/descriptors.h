/* descriptors.h - how many files and sockets this process may have open. Call it once at start, before threads. */
#ifndef MOESAIC_SYS_DESCRIPTORS_H
#define MOESAIC_SYS_DESCRIPTORS_H

#include <stdint.h>

/* Enough that one host, which has 65,535 ports to come from, cannot use them up. */
#define DESCRIPTORS_ENOUGH (256u << 10)

/* Raise the soft limit, which most systems leave at 1024, to the hard one, at most DESCRIPTORS_ENOUGH. Answers the limit
 * that holds now. A listener of gRPC that once finds no descriptor for a connection never accepts another. */
uint32_t descriptors_raise(void);

#endif
