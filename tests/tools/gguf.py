"""Reads the header of a GGUF file, for tests: a second opinion on what src/formats/gguf.c reads.
Standard library only. Format: ggml's docs/gguf.md, versions 2 and 3."""

import struct

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# number: (name, elements of a block, bytes of a block)
TYPES = {0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 18), 8: ("q8_0", 32, 34),
         30: ("bf16", 1, 2)}


class Header:
    """meta: {key: value}; tensors: {name: (type number, dims, offset in the file, bytes)};
    type_at: {name: where the number of its type stands}; data_at: where the tensors' data begins."""

    def __init__(self, data):
        self.data, self.at = data, 0
        if self.take("4s") != b"GGUF":
            raise ValueError("not a GGUF file")
        self.version = self.take("I")
        n_tensor, n_meta = self.take("Q"), self.take("Q")
        self.meta, self.tensors, self.type_at = {}, {}, {}
        for _ in range(n_meta):
            key = self.string().decode()
            self.meta[key] = self.value(self.take("I"))
        table = []
        for _ in range(n_tensor):
            name = self.string().decode()
            dims = [self.take("Q") for _ in range(self.take("I"))]
            self.type_at[name] = self.at
            table.append((name, dims, self.take("I"), self.take("Q")))
        alignment = self.meta.get("general.alignment", 32)
        self.data_at = -(-self.at // alignment) * alignment
        for name, dims, number, offset in table:
            elements = 1
            for d in dims:
                elements *= d
            _, block, block_bytes = TYPES[number]
            self.tensors[name] = (number, dims, self.data_at + offset,
                                  elements // block * block_bytes)

    def take(self, kind):
        (value,) = struct.unpack_from("<" + kind, self.data, self.at)
        self.at += struct.calcsize("<" + kind)
        return value

    def string(self):
        n = self.take("Q")
        self.at += n
        return bytes(self.data[self.at - n:self.at])

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            item, n = self.take("I"), self.take("Q")
            return [self.value(item) for _ in range(n)]
        return self.take(SCALARS[kind])
