/* clock.h - the real clocks, for drivers only: pure cores get the time in their events. Any thread. */
#ifndef MOESAIC_BASE_CLOCK_H
#define MOESAIC_BASE_CLOCK_H

#include <stdint.h>

uint64_t clock_now_us(void); /* monotonic */
uint64_t clock_now_ns(void); /* monotonic */
int64_t clock_unix_seconds(void);

#endif
