/* iq_tables.h - code books of the IQ formats: numbers of the file format, which no rule gives. Constant, any thread.
 *
 * An entry has the codes of 8 elements (4 of iq3) from bit 0 up, 2 bits each (3 of iq3). What a code stands for:
 *   iq2: 8, 25, 43     iq3_xxs: 4 12 20 28 36 44 52 62     iq3_s: 2 code + 1     iq1: code - 1 */
#ifndef MOESAIC_TENSOR_IQ_TABLES_H
#define MOESAIC_TENSOR_IQ_TABLES_H

#include <stdint.h>

extern const uint16_t iq2_xxs_book[256], iq2_xs_book[512], iq2_s_book[1024];
extern const uint16_t iq3_xxs_book[256], iq3_s_book[512];
extern const uint16_t iq1_book[2048];

#endif
