/* What a kind of tokenizer fills in, and the vocabulary that all kinds share. Private to
 * tokenizer/. */
#ifndef SH_TOKENIZER_KIND_H
#define SH_TOKENIZER_KIND_H

#include "tokenizer/tokenizer.h"

/* Larger than any vocabulary known; they bound the memory that a bad file can ask for. */
enum {
    SH_MAX_VOCAB = 1 << 20,        /* tokens */
    SH_MAX_VOCAB_BYTES = 16 << 20, /* of all spellings together */
    SH_MAX_SPELLING = UINT16_MAX,  /* bytes */
    SH_MAX_SPECIAL = 256,          /* bytes of a token that is searched for in the text */
};

/* Values are those of tokenizer.ggml.token_type. */
typedef enum sh_token_type {
    SH_TOKEN_NORMAL = 1,
    SH_TOKEN_UNKNOWN, /* stands for what cannot be spelled */
    SH_TOKEN_CONTROL, /* <s>, <|im_end|>, ... */
    SH_TOKEN_USER,    /* always found in the text before anything else is */
    SH_TOKEN_UNUSED,
    SH_TOKEN_BYTE, /* <0x0A>: one byte that no other token holds */
} sh_token_type;

#define SH_TOKEN_BIT(type) (1u << (type))
enum {
    SH_TOKENS_TEXT = 1u << SH_TOKEN_NORMAL | 1u << SH_TOKEN_USER | 1u << SH_TOKEN_UNUSED,
    SH_TOKENS_CONTROL = 1u << SH_TOKEN_CONTROL | 1u << SH_TOKEN_UNKNOWN,
};

typedef struct sh_token {
    uint32_t at, piece_at; /* in sh_vocab.chars: the spelling (NUL-terminated) and the piece */
    uint16_t n, n_piece;   /* bytes */
    uint8_t type;          /* sh_token_type */
} sh_token;

typedef struct sh_vocab {
    uint32_t n;
    sh_token *token; /* (n) */
    char *chars;
    uint32_t *slot; /* (n_slot, a power of two): id + 1 by hash of the spelling; 0 is free */
    uint32_t n_slot;
    uint64_t key; /* of the hash: drawn anew each time, so no file can be made to collide */
} sh_vocab;

/* Token ids put one after the other. */
typedef struct sh_ids {
    uint32_t *v;
    size_t n, cap;
} sh_ids;

sh_err sh_ids_add(sh_ids *ids, uint32_t id);

typedef struct sh_tokenizer_kind {
    const char *name;      /* tokenizer.ggml.model */
    bool add_bos;          /* where the file does not say */
    int bos, eos, unknown; /* ids where the file does not say; -1: none */

    /* The type of a token in files without types. NULL: they are all normal. */
    sh_token_type (*type)(const char *spelling, size_t n);
    /* The bytes that a normal, user or unused token stands for; writes and returns at most n. */
    size_t (*piece)(char *out, const char *spelling, size_t n, sh_token_type type);
    /* Reads what only this kind has into t->own; the rest of *t is set. close follows in any case.
     */
    sh_err (*open)(sh_tokenizer *t, const sh_model_file *m);
    void (*close)(sh_tokenizer *t);
    /* Appends the tokens of n > 0 bytes without control and user tokens; `first`: they begin the
     * text or follow such a token. */
    sh_err (*encode)(const sh_tokenizer *t, const char *text, size_t n, bool first, sh_ids *ids);
} sh_tokenizer_kind;

extern const sh_tokenizer_kind *const sh_tokenizer_kinds[]; /* ends with NULL */
extern const sh_tokenizer_kind sh_tokenizer_spm, sh_tokenizer_bpe;

struct sh_tokenizer {
    const sh_tokenizer_kind *kind;
    sh_vocab vocab;
    int bos, unknown; /* -1: none */
    bool add_bos;
    bool space_prefix; /* set by the kind */
    uint32_t end[8];
    int n_end;
    /* The first bytes of the control, unknown and user tokens of each length, one bit a byte. */
    uint64_t special[SH_MAX_SPECIAL + 1][4];
    int longest_special, longest_user; /* bytes; 0: none */
    void *own;                         /* the kind's */
};

/** Reads tokenizer.ggml.tokens and token_type. Free with sh_vocab_close, also after a failure. */
sh_err sh_vocab_open(sh_vocab *v, const sh_model_file *m, const sh_tokenizer_kind *kind);
void sh_vocab_close(sh_vocab *v);
/** The first id with that spelling and one of these types (SH_TOKEN_BIT); -1 if there is none. */
int sh_vocab_find(const sh_vocab *v, const char *p, size_t n, unsigned types);
/** 0 to 255 if the spelling is that of a byte token (<0x0A>), else -1. */
int sh_vocab_byte(const char *spelling, size_t n);

#endif
