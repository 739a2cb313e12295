/* Documents to a file of token ids (train/data.h). */
#ifndef SH_TRAIN_ENCODE_H
#define SH_TRAIN_ENCODE_H

#include "base/threads.h"
#include "formats/formats.h"
#include "tokenizer/pretoken.h"
#include "tokenizer/tokenizer.h"
#include "train/corpus.h"

typedef struct sh_encoder_thread sh_encoder_thread;

typedef struct sh_encoder {
    sh_pool *pool;         /* borrowed */
    sh_tokenizer *t;       /* owned */
    sh_pretoken *pretoken; /* NULL: documents are encoded as a whole, not word by word */
    sh_encoder_thread *thread;
    int64_t end, bos; /* ids; -1: none is put after or before a document */
    int id_bytes;
} sh_encoder;

/** The tokenizer of the model file. Close with sh_encoder_close, also after a failure. */
sh_err sh_encoder_open(sh_encoder *e, const sh_model_file *m, sh_pool *pool);
void sh_encoder_close(sh_encoder *e);

/** Writes the ids of the documents to a new file, which is on the disk when this returns SH_OK.
 *  SH_EARG: a text that the tokenizer cannot encode. SH_ESYS: the file is there already, the disk
 *  is full, or SIGINT or SIGTERM is pending. After a failure there is no file. */
sh_err sh_encoder_write(sh_encoder *e, const sh_docs *docs, const char *path, size_t *n_tok);

#endif
