/* limits.h - every bound on what comes from outside, with its unit and its reason. */
#ifndef MOESAIC_BASE_LIMITS_H
#define MOESAIC_BASE_LIMITS_H

/* Model files */
#define LIMIT_SAFETENSORS_HEADER_BYTES                                                             \
    (64u << 20) /* DeepSeek-V3's largest shard header is 150 KiB; room for one-file models */
#define LIMIT_GGUF_HEADER_BYTES                                                                    \
    (1u << 30) /* vocabularies of 200k entries with merges and scores: 12 MiB */
#define LIMIT_GGUF_KEYS             65536u
#define LIMIT_GGUF_TENSORS          (1u << 20)  /* experts apart: 46k for 58 layers of 256 */
#define LIMIT_GGUF_ARRAY            (16u << 20) /* strings of a vocabulary or of its merges */
#define LIMIT_CONFIG_JSON_BYTES     (1u << 20)
#define LIMIT_INDEX_JSON_BYTES      (64u << 20) /* DeepSeek-V3's index: 9 MiB */
#define LIMIT_TOKENIZER_JSON_BYTES  (128u << 20)
#define LIMIT_TOKENIZER_REGEX_BYTES (64u << 10) /* DeepSeek's longest: 1 KiB */
#define LIMIT_TOKENIZER_REGEX_STEPS                                                                \
    10000000u /* backtracks in one match, and 4 for each byte of the text */
#define LIMIT_TOKENIZER_REGEX_HEAP_KIB (64u << 10)
#define LIMIT_ADDED_TOKEN_BYTES        4096u
#define LIMIT_SCORED_TOKEN_BYTES                                                                   \
    1024u                       /* every way to cut one is tried at load; the longest have 48 */
#define LIMIT_TOKENIZER_OPS 64u /* steps in one of a tokenizer's chains */
/* What a chain may make of n bytes; NFKC makes at most 11 of one, and a Replace of the file any number. */
#define LIMIT_TOKENIZER_GROWN(n) ((size_t)256 + 32 * (size_t)(n))
#define LIMIT_ENCODE_BYTES       (1u << 30) /* one text; positions are 32 bits wide */
#define LIMIT_FILE_JSON_DEPTH    64u
#define LIMIT_SHARDS             4096u
#define LIMIT_LAYERS             512u
#define LIMIT_EXPERTS            1024u /* per layer; ids travel as u16 */
#define LIMIT_TOP_K              64u
#define LIMIT_HIDDEN             65536u
#define LIMIT_FFN_WIDTH          (256u << 10)
#define LIMIT_HEADS              1024u
#define LIMIT_HEAD_DIM           1024u
#define LIMIT_VOCAB              (4u << 20)
#define LIMIT_CONTEXT            (16u << 20) /* tokens */

/* HTTP (reference: operations, defaults) */
#define LIMIT_HTTP_HEAD_BYTES      (32u << 10)
#define LIMIT_HTTP_URL_BYTES       (8u << 10)
#define LIMIT_HTTP_HEADERS         64u
#define LIMIT_HTTP_BODY_BYTES      (8u << 20)
#define LIMIT_HTTP_BODIES_BYTES    (256u << 20) /* all request bodies under way together */
#define LIMIT_HTTP_CONNECTIONS     1024u
#define LIMIT_HTTP_CONNECTIONS_IP  512u /* from one address; loopback is not limited */
#define LIMIT_HTTP_HEAD_MS         10000u
#define LIMIT_HTTP_BODY_MS         30000u
#define LIMIT_HTTP_IDLE_MS         60000u
#define LIMIT_HTTP_STALLED_MS      30000u
#define LIMIT_HTTP_PIPELINED_BYTES (80u << 10)
#define LIMIT_HTTP_UNSENT_MARK     (64u << 10) /* above it a stream takes no more tokens */
#define LIMIT_JSON_DEPTH           64u
#define LIMIT_GRPC_CALLS           1024u /* open Generate calls */

/* Requests */
#define LIMIT_QUEUE              64u /* waiting requests, then 503 */
#define LIMIT_N                  8u
#define LIMIT_TOP_LOGPROBS       20u
#define LIMIT_STOP_STRINGS       16u
#define LIMIT_LOGIT_BIAS         1024u
#define LIMIT_REPETITION_PENALTY 4u
#define LIMIT_STOP_BYTES         256u
#define LIMIT_PROMPTS            64u /* prompts in one completions request */
#define LIMIT_REQUEST_MS         600000u

/* Tools */
#define LIMIT_TOOLS           128u /* offered in one request, as OpenAI has it */
#define LIMIT_TOOL_CALLS      128u /* in one message; a model's further ones are text */
#define LIMIT_TOOL_NAME_BYTES 256u
#define LIMIT_TOOL_ID_BYTES   256u
#define LIMIT_TOOL_CALL_BYTES                                                                      \
    (1u << 20)                      /* the text of one call, kept in case it has to be given back */
#define LIMIT_REPLY_HEAD_BYTES 512u /* between <|start|> and <|message|> */

/* Chat templates */
#define LIMIT_TEMPLATE_STEPS        1000000u
#define LIMIT_TEMPLATE_OUTPUT_BYTES (1u << 20)
#define LIMIT_TEMPLATE_DEPTH        100u
#define LIMIT_TEMPLATE_BYTES        (1u << 20)
#define LIMIT_TEMPLATE_NAMES        4096u
#define LIMIT_TEMPLATE_EVAL_DEPTH                                                                  \
    1000u /* the evaluator's own recursion: macro calls times nesting inside */
#define LIMIT_TEMPLATE_SCRATCH_BYTES (4u << 20)   /* output and the strings being built, together */
#define LIMIT_TEMPLATE_MEMORY_BYTES  (256u << 20) /* all values of one render */

/* Wire */
#define LIMIT_FRAME_BYTES (64u << 20)
#define LIMIT_HEADER_BYTES                                                                         \
    (16u << 20) /* small fields of a message; 4 Mi row indices of 3 bytes fit */
#define LIMIT_FRAME_ROWS       65536u
#define LIMIT_NODES            1024u
#define LIMIT_PIECE_BYTES      (256u << 10) /* bulk work is cut into pieces of at most this */
#define LIMIT_BULK_OUTSTANDING 2u

#endif
