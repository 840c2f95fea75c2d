"""`transformers serve` with an embedded LVLM: python tests/serve_embedded.py FOLDER PORT

Its processor cannot be loaded from the folder where torchvision is missing, since it insists on one for videos; here it
is made of the folder's image processor and tokenizer alone. InternVL's tokenizer is also told which tokens stand around
an image, Qwen's how an answer begins: the server's own rule looks for the text that a byte-level tokenizer writes.
"""

import sys

from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.cli.serve import Serve
from transformers.cli.serving.model_manager import ModelManager
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

AROUND_AN_IMAGE = {
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}  # fmt: skip


def load_processor(manager, name, gguf_file=None):
    folder = name.partition("@")[0]
    config = AutoConfig.from_pretrained(folder)
    usual = PROCESSOR_MAPPING[type(config)]

    class Stills(usual):
        def check_argument_for_proper_class(self, name, argument):
            return None if name == "video_processor" else super().check_argument_for_proper_class(name, argument)

    Stills.__name__ = usual.__name__  # by which its settings are known
    named = {"extra_special_tokens": AROUND_AN_IMAGE} if config.model_type == "internvl" else {}
    tokenizer = AutoTokenizer.from_pretrained(folder, **named)
    if config.model_type.startswith("qwen"):
        tokenizer.response_template = {
            "start_anchor": tokenizer.decode(tokenizer("<|im_start|>assistant\n")["input_ids"]),
            "defaults": {"role": "assistant"},
            "fields": {"content": {"close": [tokenizer.eos_token], "content": "text"}},
        }
    tokens = {"image_seq_length": config.image_seq_length} if hasattr(config, "image_seq_length") else {}
    return Stills(
        image_processor=AutoImageProcessor.from_pretrained(folder, backend="pil"), tokenizer=tokenizer,
        video_processor=None, chat_template=tokenizer.chat_template, **tokens,
    )  # fmt: skip


if __name__ == "__main__":
    ModelManager._load_processor = load_processor
    Serve(force_model=sys.argv[1], device="cpu", port=int(sys.argv[2]))
