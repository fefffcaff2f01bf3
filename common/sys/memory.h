/* memory.h - how much memory this process can still take, and what it takes now. Any thread. */
#ifndef MOESAIC_SYS_MEMORY_H
#define MOESAIC_SYS_MEMORY_H

#include <stddef.h>
#include <stdint.h>

/* Bytes: the machine's MemAvailable, or less when a control group or a resource limit allows less. */
uint64_t memory_available(void);
uint64_t memory_resident(void); /* of this process; anonymous and file pages together */
unsigned memory_cores(void);    /* cores this process may use */

/* "1.5 GiB", "312 MiB", "9.4 KiB" into the caller's buffer; returns it. */
const char *memory_text(uint64_t bytes, char out[32]);

#endif
