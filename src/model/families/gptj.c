/* Family gptj: one LayerNorm for a layer, whose output attention and feed-forward both read; both
 * are added to the residual at once. Rotary positions in adjacent pairs over the first values of a
 * head, GELU, biases in the feed-forward part, a head with a bias.
 * Source: Wang & Komatsuzaki 2021, "GPT-J-6B: a 6 billion parameter autoregressive language model";
 * the GGUF specification. */
#include "model/family.h"

#define L(field) offsetof(sh_layer, field)
#define E(field) offsetof(sh_ends, field)
#define HF       "transformer.h.%d."

static const sh_tensor_row layer[] = {
    {L(attn_norm), "blk.%d.attn_norm.weight", HF "ln_1.weight", SH_DIM_EMBD, SH_DIM_ONE,
     .split = SH_WHOLE},
    {L(attn_norm), "blk.%d.attn_norm.bias", HF "ln_1.bias", SH_DIM_EMBD, SH_DIM_ONE,
     .split = SH_WHOLE, .bias = true},
    {L(wq), "blk.%d.attn_q.weight", HF "attn.q_proj.weight", SH_DIM_Q, SH_DIM_EMBD,
     .split = SH_BY_ROW},
    {L(wk), "blk.%d.attn_k.weight", HF "attn.k_proj.weight", SH_DIM_KV, SH_DIM_EMBD,
     .split = SH_BY_ROW},
    {L(wv), "blk.%d.attn_v.weight", HF "attn.v_proj.weight", SH_DIM_KV, SH_DIM_EMBD,
     .split = SH_BY_ROW},
    {L(wo), "blk.%d.attn_output.weight", HF "attn.out_proj.weight", SH_DIM_EMBD, SH_DIM_Q,
     .split = SH_BY_COL},
    {L(up), "blk.%d.ffn_up.weight", HF "mlp.fc_in.weight", SH_DIM_FF, SH_DIM_EMBD,
     .split = SH_BY_ROW},
    {L(up), "blk.%d.ffn_up.bias", HF "mlp.fc_in.bias", SH_DIM_FF, SH_DIM_ONE, .split = SH_BY_ROW,
     .bias = true},
    {L(down), "blk.%d.ffn_down.weight", HF "mlp.fc_out.weight", SH_DIM_EMBD, SH_DIM_FF,
     .split = SH_BY_COL},
    {L(down), "blk.%d.ffn_down.bias", HF "mlp.fc_out.bias", SH_DIM_EMBD, SH_DIM_ONE,
     .split = SH_WHOLE, .bias = true},
    {0},
};

static const sh_tensor_row ends[] = {
    {E(embd), "token_embd.weight", "transformer.wte.weight", SH_DIM_VOCAB, SH_DIM_EMBD,
     .split = SH_LOOKUP},
    {E(out_norm), "output_norm.weight", "transformer.ln_f.weight", SH_DIM_EMBD, SH_DIM_ONE,
     .split = SH_WHOLE},
    {E(out_norm), "output_norm.bias", "transformer.ln_f.bias", SH_DIM_EMBD, SH_DIM_ONE,
     .split = SH_WHOLE, .bias = true},
    {E(head), "output.weight", "lm_head.weight", SH_DIM_VOCAB, SH_DIM_EMBD, .split = SH_BY_ROW},
    {E(head), "output.bias", "lm_head.bias", SH_DIM_VOCAB, SH_DIM_ONE, .split = SH_BY_ROW,
     .bias = true},
    {0},
};

static sh_err configure(sh_config *c, const sh_model_file *m)
{
    uint32_t rot; /* no default: most of a head is not rotated */
    SH_TRY(sh_meta_need_u32(m, "gptj.rope.dimension_count", &rot));
    SH_TRY(sh_config_rope(c, m));
    c->norm = SH_NORM_LAYER;
    c->act = SH_ACT_GELU;
    c->parallel = true;
    return sh_config_eps(c, m, "attention.layer_norm_epsilon");
}

const sh_family sh_family_gptj = {
    .name = "gptj", .layer = layer, .ends = ends, .configure = configure};
