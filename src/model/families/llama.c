/* Family llama: RMSNorm, rotary positions in adjacent pairs, grouped KV heads, SwiGLU.
 * Source: Touvron et al. 2023, arXiv:2302.13971 and arXiv:2307.09288; the GGUF specification. */
#include <math.h>
#include <string.h>

#include "model/family.h"

#define L(field) offsetof(sh_layer, field)
#define E(field) offsetof(sh_ends, field)

static const sh_tensor_row layer[] = {
    {L(attn_norm), "blk.%d.attn_norm.weight", "model.layers.%d.input_layernorm.weight", SH_DIM_EMBD,
     SH_DIM_ONE, SH_WHOLE, NULL, false},
    {L(wq), "blk.%d.attn_q.weight", "model.layers.%d.self_attn.q_proj.weight", SH_DIM_Q,
     SH_DIM_EMBD, SH_BY_ROW, NULL, false},
    {L(wk), "blk.%d.attn_k.weight", "model.layers.%d.self_attn.k_proj.weight", SH_DIM_KV,
     SH_DIM_EMBD, SH_BY_ROW, NULL, false},
    {L(wv), "blk.%d.attn_v.weight", "model.layers.%d.self_attn.v_proj.weight", SH_DIM_KV,
     SH_DIM_EMBD, SH_BY_ROW, NULL, false},
    {L(wo), "blk.%d.attn_output.weight", "model.layers.%d.self_attn.o_proj.weight", SH_DIM_EMBD,
     SH_DIM_Q, SH_BY_COL, NULL, false},
    {L(ffn_norm), "blk.%d.ffn_norm.weight", "model.layers.%d.post_attention_layernorm.weight",
     SH_DIM_EMBD, SH_DIM_ONE, SH_WHOLE, NULL, false},
    {L(gate), "blk.%d.ffn_gate.weight", "model.layers.%d.mlp.gate_proj.weight", SH_DIM_FF,
     SH_DIM_EMBD, SH_BY_ROW, NULL, false},
    {L(up), "blk.%d.ffn_up.weight", "model.layers.%d.mlp.up_proj.weight", SH_DIM_FF, SH_DIM_EMBD,
     SH_BY_ROW, NULL, false},
    {L(down), "blk.%d.ffn_down.weight", "model.layers.%d.mlp.down_proj.weight", SH_DIM_EMBD,
     SH_DIM_FF, SH_BY_COL, NULL, false},
    {0},
};

static const sh_tensor_row ends[] = {
    {E(embd), "token_embd.weight", "model.embed_tokens.weight", SH_DIM_VOCAB, SH_DIM_EMBD,
     SH_LOOKUP, NULL, false},
    {E(out_norm), "output_norm.weight", "model.norm.weight", SH_DIM_EMBD, SH_DIM_ONE, SH_WHOLE,
     NULL, false},
    {E(head), "output.weight", "lm_head.weight", SH_DIM_VOCAB, SH_DIM_EMBD, SH_BY_ROW,
     "token_embd.weight", false},
    {E(rope_freqs), "rope_freqs.weight", NULL, SH_DIM_ROT, SH_DIM_ONE, SH_WHOLE, NULL, true},
    {0},
};

/* An integer of the metadata that must lie in [1, max]. */
static sh_err need(const sh_model_file *m, const char *key, uint32_t max, int *out)
{
    uint32_t v = 0;
    SH_TRY(sh_meta_need_u32(m, key, &v));
    if (v < 1 || v > max)
        return sh_fail(SH_EFILE, "%s: %s is %u; 1 to %u can be", m->file.path, key, v, max);
    *out = (int)v;
    return SH_OK;
}

static sh_err scaling(sh_config *c, const sh_model_file *m)
{
    sh_str type = {"none", 4};
    float factor = 1;
    SH_TRY(sh_meta_str(m, "llama.rope.scaling.type", &type));
    if (type.n == 6 && memcmp(type.p, "linear", 6) == 0) {
        SH_TRY(sh_meta_f32(m, "llama.rope.scaling.factor", &factor));
    } else if (!(type.n == 4 && memcmp(type.p, "none", 4) == 0)) {
        return sh_fail(
            SH_EFILE,
            "%s: rotary scaling '%.*s' is not known; the known ones are: none, linear, and "
            "llama3 by the tensor rope_freqs.weight",
            m->file.path, (int)(type.n > 32 ? 32 : type.n), type.p);
    } else {
        SH_TRY(sh_meta_f32(m, "llama.rope.scale_linear", &factor)); /* the key of older files */
    }
    if (!(factor > 0 && factor < 1e6f))
        return sh_fail(SH_EFILE, "%s: a rotary scaling factor of %g", m->file.path, (double)factor);
    c->rope_linear = factor;
    return SH_OK;
}

static sh_err configure(sh_config *c, const sh_model_file *m)
{
    uint32_t expert = 0, kv = 0, key = 0, value = 0, rot = 0;
    float base = 10000, eps = 0;
    SH_TRY(need(m, "llama.block_count", 4096, &c->n_layer));
    SH_TRY(need(m, "llama.context_length", 1u << 28, &c->n_ctx_train));
    SH_TRY(need(m, "llama.embedding_length", 1u << 20, &c->dim[SH_DIM_EMBD]));
    SH_TRY(need(m, "llama.feed_forward_length", 1u << 22, &c->dim[SH_DIM_FF]));
    SH_TRY(need(m, "llama.attention.head_count", 1u << 12, &c->n_head));
    SH_TRY(sh_meta_u32(m, "llama.expert_count", &expert));
    if (expert)
        return sh_fail(SH_EFILE, "%s: a mixture of %u experts, which is not built yet",
                       m->file.path, expert);

    kv = (uint32_t)c->n_head;
    SH_TRY(sh_meta_u32(m, "llama.attention.head_count_kv", &kv));
    if (kv < 1 || kv > (uint32_t)c->n_head || (uint32_t)c->n_head % kv)
        return sh_fail(SH_EFILE, "%s: %d heads cannot share %u KV heads", m->file.path, c->n_head,
                       kv);
    c->n_kv_head = (int)kv;

    key = (uint32_t)(c->dim[SH_DIM_EMBD] / c->n_head);
    SH_TRY(sh_meta_u32(m, "llama.attention.key_length", &key));
    value = key;
    SH_TRY(sh_meta_u32(m, "llama.attention.value_length", &value));
    if (key < 1 || key > 4096 || key != value)
        return sh_fail(SH_EFILE, "%s: heads of %u keys and %u values; 1 to 4096, alike, can be",
                       m->file.path, key, value);
    c->head_dim = (int)key;

    rot = key;
    SH_TRY(sh_meta_u32(m, "llama.rope.dimension_count", &rot));
    if (rot > key || rot % 2)
        return sh_fail(SH_EFILE,
                       "%s: rotation of %u of a head's %u values; an even number of them can be",
                       m->file.path, rot, key);
    c->n_rot = (int)rot;

    SH_TRY(sh_meta_f32(m, "llama.rope.freq_base", &base));
    if (!(base > 0 && base < 1e30f))
        return sh_fail(SH_EFILE, "%s: a rotary frequency base of %g", m->file.path, (double)base);
    c->rope_base = base;
    SH_TRY(scaling(c, m));
    eps = 1e-5f;
    SH_TRY(sh_meta_f32(m, "llama.attention.layer_norm_rms_epsilon", &eps));
    if (!(eps >= 0 && eps < 1))
        return sh_fail(SH_EFILE, "%s: a norm epsilon of %g", m->file.path, (double)eps);
    c->norm_eps = eps;
    return SH_OK;
}

const sh_family sh_family_llama = {
    .name = "llama", .layer = layer, .ends = ends, .configure = configure};
