"""Forms that the service takes."""

from dataclasses import dataclass
from typing import Annotated, BinaryIO

from fastapi import File, Form, UploadFile

from retrieval.embedding.query import MAX_WEIGHT, Weights
from retrieval.errors import BadInput
from retrieval.serving.asked import Asked

IMAGE_MEDIA_TYPES = (
    "image/",
    "application/octet-stream",
)  # media types of an upload that may be an image
IMAGE_FORMATS = "JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or JPEG 2000"

Uploads = Annotated[list[UploadFile] | None, File(description=f"Images: {IMAGE_FORMATS}.")]
Weight = Annotated[
    float | None, Form(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)
]  # None for the default


class WrongMedia(BadInput):
    """An upload whose media type is not that of an image."""


@dataclass(frozen=True, slots=True, eq=False)
class SearchForm:
    """Form of `POST /api/search`."""

    image: Uploads = None
    text: Annotated[
        list[str] | None, Form(description="Words for what the images should show.")
    ] = None
    without: Annotated[
        list[str] | None,
        Form(alias="not", description="Words for what the images should not show."),
    ] = None
    like: Annotated[
        list[str] | None, Form(description="Ids of images of the index to be like.")
    ] = None
    unlike: Annotated[
        list[str] | None, Form(description="Ids of images of the index not to be like.")
    ] = None
    weight_images: Weight = None
    weight_text: Weight = None
    weight_not: Weight = None
    k: Annotated[int | None, Form()] = None
    index: Annotated[str | None, Form()] = None
    where: Annotated[str | None, Form()] = None
    effort: Annotated[str | None, Form()] = None

    def asked(self) -> Asked:
        """Return the query. Raises the errors of `Asked`, and WrongMedia."""
        given = {
            "images": self.weight_images,
            "text": self.weight_text,
            "without": self.weight_not,
        }
        return Asked(
            [image_file(image) for image in self.image or ()],
            self.text or (),
            self.without or (),
            self.like or (),
            self.unlike or (),
            Weights(**{part: weight for part, weight in given.items() if weight is not None}),
        )


@dataclass(frozen=True, slots=True, eq=False)
class EmbedForm:
    """Form of `POST /api/embed`."""

    image: Annotated[UploadFile | None, File(description=f"An image: {IMAGE_FORMATS}.")] = None
    text: Annotated[str | None, Form(description="A text, in place of an image.")] = None
    index: Annotated[str | None, Form()] = None

    def asked(self) -> Asked:
        """Return the image or the text as a query. Raises BadInput, and WrongMedia."""
        if (self.image is None) == (self.text is None):
            raise BadInput("the form has not one of image and text; send one of them")
        if self.image is not None:
            return Asked([image_file(self.image)])
        return Asked(texts=[self.text or ""])


def image_file(image: UploadFile) -> BinaryIO:
    """Return the file of an upload. Raises WrongMedia if its media type is not an image's."""
    kind = image.content_type or IMAGE_MEDIA_TYPES[-1]
    if not kind.startswith(IMAGE_MEDIA_TYPES):
        raise WrongMedia(f"{kind} is not an image; send {IMAGE_FORMATS}")
    return image.file
