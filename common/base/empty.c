/* A library needs one source even while its folder is empty. */
typedef int moesaic_empty_translation_unit;
