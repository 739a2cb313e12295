/* Family gpt2: LayerNorm, learned positions, fused Q, K and V, GELU, biases everywhere.
 * Source: Radford et al. 2019, "Language models are unsupervised multitask learners". The layer
 * matrices of its Hugging Face folders are transposed. */
#include "model/family.h"

#define L(field) offsetof(sh_layer, field)
#define E(field) offsetof(sh_ends, field)
#define HF       "transformer.h.%d."

static const sh_tensor_row layer[] = {
    {L(attn_norm), "blk.%d.attn_norm.weight", HF "ln_1.weight", SH_DIM_EMBD, SH_DIM_ONE,
     .split = SH_WHOLE},
    {L(attn_norm), "blk.%d.attn_norm.bias", HF "ln_1.bias", SH_DIM_EMBD, SH_DIM_ONE,
     .split = SH_WHOLE, .bias = true},
    {L(wq), "blk.%d.attn_qkv.weight", HF "attn.c_attn.weight", SH_DIM_Q, SH_DIM_EMBD,
     .split = SH_BY_ROW, .part = 0},
    {L(wk), "blk.%d.attn_qkv.weight", HF "attn.c_attn.weight", SH_DIM_KV, SH_DIM_EMBD,
     .split = SH_BY_ROW, .part = 1},
    {L(wv), "blk.%d.attn_qkv.weight", HF "attn.c_attn.weight", SH_DIM_KV, SH_DIM_EMBD,
     .split = SH_BY_ROW, .part = 2},
    {L(wq), "blk.%d.attn_qkv.bias", HF "attn.c_attn.bias", SH_DIM_Q, SH_DIM_ONE, .split = SH_BY_ROW,
     .part = 0, .bias = true},
    {L(wk), "blk.%d.attn_qkv.bias", HF "attn.c_attn.bias", SH_DIM_KV, SH_DIM_ONE,
     .split = SH_BY_ROW, .part = 1, .bias = true},
    {L(wv), "blk.%d.attn_qkv.bias", HF "attn.c_attn.bias", SH_DIM_KV, SH_DIM_ONE,
     .split = SH_BY_ROW, .part = 2, .bias = true},
    {L(wo), "blk.%d.attn_output.weight", HF "attn.c_proj.weight", SH_DIM_EMBD, SH_DIM_Q,
     .split = SH_BY_COL},
    {L(wo), "blk.%d.attn_output.bias", HF "attn.c_proj.bias", SH_DIM_EMBD, SH_DIM_ONE,
     .split = SH_WHOLE, .bias = true},
    {L(ffn_norm), "blk.%d.ffn_norm.weight", HF "ln_2.weight", SH_DIM_EMBD, SH_DIM_ONE,
     .split = SH_WHOLE},
    {L(ffn_norm), "blk.%d.ffn_norm.bias", HF "ln_2.bias", SH_DIM_EMBD, SH_DIM_ONE,
     .split = SH_WHOLE, .bias = true},
    {L(up), "blk.%d.ffn_up.weight", HF "mlp.c_fc.weight", SH_DIM_FF, SH_DIM_EMBD,
     .split = SH_BY_ROW},
    {L(up), "blk.%d.ffn_up.bias", HF "mlp.c_fc.bias", SH_DIM_FF, SH_DIM_ONE, .split = SH_BY_ROW,
     .bias = true},
    {L(down), "blk.%d.ffn_down.weight", HF "mlp.c_proj.weight", SH_DIM_EMBD, SH_DIM_FF,
     .split = SH_BY_COL},
    {L(down), "blk.%d.ffn_down.bias", HF "mlp.c_proj.bias", SH_DIM_EMBD, SH_DIM_ONE,
     .split = SH_WHOLE, .bias = true},
    {0},
};

static const sh_tensor_row ends[] = {
    {E(embd), "token_embd.weight", "transformer.wte.weight", SH_DIM_VOCAB, SH_DIM_EMBD,
     .split = SH_LOOKUP},
    {E(pos), "position_embd.weight", "transformer.wpe.weight", SH_DIM_CTX, SH_DIM_EMBD,
     .split = SH_LOOKUP, .fine = true},
    {E(out_norm), "output_norm.weight", "transformer.ln_f.weight", SH_DIM_EMBD, SH_DIM_ONE,
     .split = SH_WHOLE},
    {E(out_norm), "output_norm.bias", "transformer.ln_f.bias", SH_DIM_EMBD, SH_DIM_ONE,
     .split = SH_WHOLE, .bias = true},
    {E(head), "output.weight", "lm_head.weight", SH_DIM_VOCAB, SH_DIM_EMBD, .split = SH_BY_ROW,
     .instead = "token_embd.weight"},
    {0},
};

static sh_err configure(sh_config *c, const sh_model_file *m)
{
    c->norm = SH_NORM_LAYER;
    c->act = SH_ACT_GELU;
    c->learned_pos = true;
    c->n_ctx_max = c->n_ctx_train;
    return sh_config_eps(c, m, "attention.layer_norm_epsilon");
}

const sh_family sh_family_gpt2 = {
    .name = "gpt2", .layer = layer, .ends = ends, .configure = configure};
