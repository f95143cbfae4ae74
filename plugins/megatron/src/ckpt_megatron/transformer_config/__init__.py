"""`TransformerConfig` of Megatron-Core, with the fields that its GPT children in NeMo 2 and Megatron-Bridge add.

Both write the dataclass down field by field, where Megatron-LM stores its command line (`ckpt_megatron.args`). Most
fields mean what the argument of the same name means; `fields` has the tables.
"""
