/* Family llama: RMSNorm, rotary positions in adjacent pairs, grouped KV heads, SwiGLU.
 * Source: Touvron et al. 2023, arXiv:2302.13971 and arXiv:2307.09288; the GGUF specification. */
#include "model/family.h"

#define L(field) offsetof(sh_layer, field)
#define E(field) offsetof(sh_ends, field)

static const sh_tensor_row layer[] = {
    {L(attn_norm), "blk.%d.attn_norm.weight", "model.layers.%d.input_layernorm.weight", SH_DIM_EMBD,
     SH_DIM_ONE, .split = SH_WHOLE},
    {L(wq), "blk.%d.attn_q.weight", "model.layers.%d.self_attn.q_proj.weight", SH_DIM_Q,
     SH_DIM_EMBD, .split = SH_BY_ROW},
    {L(wk), "blk.%d.attn_k.weight", "model.layers.%d.self_attn.k_proj.weight", SH_DIM_KV,
     SH_DIM_EMBD, .split = SH_BY_ROW},
    {L(wv), "blk.%d.attn_v.weight", "model.layers.%d.self_attn.v_proj.weight", SH_DIM_KV,
     SH_DIM_EMBD, .split = SH_BY_ROW},
    {L(wo), "blk.%d.attn_output.weight", "model.layers.%d.self_attn.o_proj.weight", SH_DIM_EMBD,
     SH_DIM_Q, .split = SH_BY_COL},
    {L(ffn_norm), "blk.%d.ffn_norm.weight", "model.layers.%d.post_attention_layernorm.weight",
     SH_DIM_EMBD, SH_DIM_ONE, .split = SH_WHOLE},
    {L(gate), "blk.%d.ffn_gate.weight", "model.layers.%d.mlp.gate_proj.weight", SH_DIM_FF,
     SH_DIM_EMBD, .split = SH_BY_ROW},
    {L(up), "blk.%d.ffn_up.weight", "model.layers.%d.mlp.up_proj.weight", SH_DIM_FF, SH_DIM_EMBD,
     .split = SH_BY_ROW},
    {L(down), "blk.%d.ffn_down.weight", "model.layers.%d.mlp.down_proj.weight", SH_DIM_EMBD,
     SH_DIM_FF, .split = SH_BY_COL},
    {0},
};

static const sh_tensor_row ends[] = {
    {E(embd), "token_embd.weight", "model.embed_tokens.weight", SH_DIM_VOCAB, SH_DIM_EMBD,
     .split = SH_LOOKUP},
    {E(out_norm), "output_norm.weight", "model.norm.weight", SH_DIM_EMBD, SH_DIM_ONE,
     .split = SH_WHOLE},
    {E(head), "output.weight", "lm_head.weight", SH_DIM_VOCAB, SH_DIM_EMBD, .split = SH_BY_ROW,
     .instead = "token_embd.weight"},
    {E(rope_freqs), "rope_freqs.weight", NULL, SH_DIM_ROT, SH_DIM_ONE, .split = SH_WHOLE,
     .optional = true},
    {0},
};

static sh_err configure(sh_config *c, const sh_model_file *m)
{
    uint32_t expert = 0;
    SH_TRY(sh_meta_u32(m, "llama.expert_count", &expert));
    if (expert)
        return sh_fail(SH_EFILE, "%s: a mixture of %u experts, which is not built yet",
                       m->file.path, expert);
    SH_TRY(sh_config_rope(c, m));
    c->norm = SH_NORM_RMS;
    c->act = SH_ACT_SILU;
    return sh_config_eps(c, m, "attention.layer_norm_rms_epsilon");
}

const sh_family sh_family_llama = {
    .name = "llama", .layer = layer, .ends = ends, .configure = configure};
