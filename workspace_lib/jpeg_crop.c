/* One box of a JPEG, to BGR: what libjpeg-turbo's full decode has there to the bit, for the price of the rows down to it.
 *
 * In: the bytes of a file, the size of its image as the caller read it, the box. Out: rows that hold the box and a few
 * columns before and after it; `room` is the distance of rows in `out`, in pixels, width + 63 at the most is used.
 * Returns where in a row the box begins, or -1 for whatever is not plain: an error, a warning, several scans, other
 * components, another size, a box that is not within the image, too little room. Only rows of `out` are ever written.
 */
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <jpeglib.h>

/* Upsampled chroma looks at the neighbours of a pixel, which the border of what is decoded has not: two pixels are one of
 * chroma. And where few columns of chroma are left, upsampling is of another kind. */
enum { MARGIN = 2, NARROW = 16 };

struct errors { struct jpeg_error_mgr base; jmp_buf out; };

static void give_up(j_common_ptr info) { longjmp(((struct errors *)info->err)->out, 1); }
static void give_up_if_warned(j_common_ptr info, int level) { if (level < 0) give_up(info); }
static void do_nothing(j_common_ptr info) { (void)info; }

/* Not jpeg_std_error: it prints to stderr, and would keep a libjpeg.a that was made for programs out of a library. */
static struct jpeg_error_mgr *silent(struct errors *errors) {
    memset(errors, 0, sizeof *errors);
    errors->base.error_exit = give_up;
    errors->base.emit_message = give_up_if_warned;
    errors->base.output_message = do_nothing;
    errors->base.reset_error_mgr = do_nothing;
    return &errors->base;
}

static int is_plain(struct jpeg_decompress_struct *info) {
    return !jpeg_has_multiple_scans(info) && (info->num_components == 1 || info->num_components == 3);
}

static int is_within(int from, int length, int whole) { return from >= 0 && length > 0 && length <= whole - from; }

static int least(int a, int b) { return a < b ? a : b; }

static int decode(struct jpeg_decompress_struct *info, int image_height, int image_width, int top, int left, int height,
                  int width, int room, unsigned char *out) {
    jpeg_read_header(info, TRUE);
    if ((int)info->image_width != image_width || (int)info->image_height != image_height || !is_plain(info)) return -1;
    info->out_color_space = JCS_EXT_BGR;
    jpeg_start_decompress(info);
    int margin = width < NARROW ? NARROW : MARGIN, before = least(margin, left);
    JDIMENSION start = (JDIMENSION)(left - before);
    JDIMENSION wide = (JDIMENSION)(before + width + least(margin, image_width - left - width));
    jpeg_crop_scanline(info, &start, &wide); /* widens to whole blocks */
    if ((int)info->output_width > room) return -1;
    if (top) jpeg_skip_scanlines(info, (JDIMENSION)top);
    for (; height--; out += 3 * (size_t)room) {
        JSAMPROW row = out;
        jpeg_read_scanlines(info, &row, 1);
    }
    return left - (int)start;
}

int jpeg_crop(const unsigned char *data, size_t size, int image_height, int image_width, int top, int left, int height,
              int width, int room, unsigned char *out) {
    struct jpeg_decompress_struct info;
    struct errors errors;
    if (!is_within(left, width, image_width) || !is_within(top, height, image_height)) return -1;
    info.err = silent(&errors);
    if (setjmp(errors.out)) { jpeg_destroy_decompress(&info); return -1; }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, data, size);
    int offset = decode(&info, image_height, image_width, top, left, height, width, room, out);
    jpeg_destroy_decompress(&info);
    return offset;
}
