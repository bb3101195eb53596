"""`[models.serve.openai]`: a server elsewhere that answers in the place of a model here."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class UpstreamSection(BaseModel):
    """A server that speaks OpenAI's chat completions. Prompts and images of jobs that name its model are sent to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(
        max_length=2048, description="address up to what stands before /chat/completions, such as https://host/v1"
    )
    model: str = Field(min_length=1, max_length=256, description="what the server calls the model")
    key_file: Path | None = Field(None, description="file with the key, on one line; read anew for every job")
    tls_ca_file: Path | None = Field(
        None, description="certificates that may sign the server's; the system's when unset"
    )
    server: Literal["openai", "llama-server", "vllm"] = Field(
        "openai", description="what it takes beyond OpenAI's API: top_k, repetition_penalty, regex and grammar"
    )
    images: int = Field(0, ge=0, le=16, description="images it takes in one prompt; 0 for a model that sees none")
    connect_s: float = Field(10.0, gt=0, le=300, description="how long a connection may take")
    first_token_s: float = Field(
        120.0, gt=0, le=3600, description="how long the first token may take, all tries together"
    )
    token_s: float = Field(30.0, gt=0, le=3600, description="how long each further token may take")
    retries: int = Field(
        3, ge=0, le=10, description="tries after the first, when the server is busy or away and has said nothing yet"
    )

    @model_validator(mode="after")
    def _address(self) -> "UpstreamSection":
        parts = urlsplit(self.url)
        if parts.scheme not in {"https", "http"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("url must be https://host/… or http://host/…, without ? and #")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url must hold no name or password; put the key into a file, key_file")
        if self.key_file is not None and parts.scheme != "https" and parts.hostname not in LOOPBACK:
            raise ValueError("a key goes over https only, or to this device itself; mend url or unset key_file")
        return self

    @property
    def host(self) -> str:
        """Who is asked, for results to tell."""
        return urlsplit(self.url).hostname or ""
