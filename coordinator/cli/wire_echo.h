/* wire_echo.h - the two ends of `moesaic bench wire`: a raw TCP ping-pong, and the process that echoes.
 * One thread per process. The echo process serves the gRPC stream and, when told over it, the raw connection, so
 * never do both ends spin against each other's idle half. */
#ifndef MOESAIC_CLI_WIRE_ECHO_H
#define MOESAIC_CLI_WIRE_ECHO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#define WIRE_STREAM "/moesaic.v1.ExpertService/Stream"
#define WIRE_RAW                                                                                   \
    "/moesaic.bench.Wire/Raw" /* unary; body: u32 size. Then the server echoes raw messages up to the last */

#define WIRE_SPIN_US 2000u /* in mode spin: longer than a round trip of the largest size */

/* Round trips of `bytes` bytes as the side that waits first, until one is the last. False: the connection is gone. */
bool wire_raw_echo(int fd, bool spin, void *buffer, uint32_t bytes);
/* One round trip as the side that sends first; the first byte says whether it is the last. */
bool wire_raw_round(int fd, bool spin, void *buffer, uint32_t bytes, bool last);

/* Run on one core; a thread keeps what it inherits, so call it when gRPC's threads exist. False: not allowed. */
bool wire_pin(unsigned nth_core);

/* The child: prints "<gRPC port> <TCP port>\n" on stdout, then echoes until stdin closes. Exit code. */
int wire_echo_main(bool spin, bool pin);

#endif
