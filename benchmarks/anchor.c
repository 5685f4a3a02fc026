/* What decoding costs at the least: libjpeg-turbo's own calls, without a library around them.
 *
 *   anchor full FILE...          every file whole, to BGR
 *   anchor crop FILE...          a random-resized crop of each: rows and blocks outside are skipped where the format lets
 *
 * One pass over the files for each line of the standard input; prints CPU seconds of the pass, reading included.
 */
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <jpeglib.h>

struct errors { struct jpeg_error_mgr base; jmp_buf out; };

static void fail(j_common_ptr info) { longjmp(((struct errors *)info->err)->out, 1); }
static void say_nothing(j_common_ptr info) { (void)info; }

static unsigned char *data, *pixels;
static size_t data_room, pixel_room;
static unsigned long long state = 1;

static double uniform(void) { /* xorshift64*: the same crops on every machine */
    state ^= state >> 12; state ^= state << 25; state ^= state >> 27;
    return (double)((state * 2685821657736338717ULL) >> 11) / 9007199254740992.0;
}

static unsigned char *room(unsigned char *old, size_t *have, size_t need) {
    if (need <= *have) return old;
    *have = need;
    return realloc(old, need);
}

static size_t read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) { perror(path); exit(2); }
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    rewind(file);
    data = room(data, &data_room, size);
    if (fread(data, 1, size, file) != size) { perror(path); exit(2); }
    fclose(file);
    return size;
}

/* The crop of mmclassification and torchvision: area 8 to 100 %, sides 3:4 to 4:3, ten tries, else the whole. */
static void draw_crop(int width, int height, int *left, int *top, int *wide, int *tall) {
    for (int attempt = 0; attempt < 10; attempt++) {
        double area = (0.08 + 0.92 * uniform()) * width * height;
        double aspect = exp(log(3.0 / 4) + uniform() * (log(4.0 / 3) - log(3.0 / 4)));
        int w = (int)lround(sqrt(area * aspect)), h = (int)lround(sqrt(area / aspect));
        if (w > 0 && h > 0 && w <= width && h <= height) {
            *left = (int)(uniform() * (width - w + 1)), *top = (int)(uniform() * (height - h + 1));
            *wide = w, *tall = h;
            return;
        }
    }
    *left = *top = 0, *wide = width, *tall = height;
}

static int decode(const char *path, int crop) {
    struct jpeg_decompress_struct info;
    struct errors errors;
    size_t size = read_file(path);
    info.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = fail;
    errors.base.output_message = say_nothing;
    jpeg_create_decompress(&info);
    if (setjmp(errors.out)) { jpeg_destroy_decompress(&info); return 1; }
    jpeg_mem_src(&info, data, size);
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_EXT_BGR;
    jpeg_start_decompress(&info);
    int left = 0, top = 0, wide = (int)info.output_width, tall = (int)info.output_height;
    if (crop) {
        draw_crop(wide, tall, &left, &top, &wide, &tall);
        JDIMENSION x = (JDIMENSION)left, w = (JDIMENSION)wide;
        jpeg_crop_scanline(&info, &x, &w); /* widens to whole blocks */
        if (top) jpeg_skip_scanlines(&info, (JDIMENSION)top);
    }
    size_t row = 3 * (size_t)info.output_width;
    pixels = room(pixels, &pixel_room, row * (size_t)tall);
    while ((int)info.output_scanline < top + tall) {
        JSAMPROW line = pixels + row * (info.output_scanline - (size_t)top);
        jpeg_read_scanlines(&info, &line, 1);
    }
    jpeg_abort_decompress(&info);
    jpeg_destroy_decompress(&info);
    return 0;
}

int main(int count, char **words) {
    char line[64];
    if (count < 3) { fprintf(stderr, "usage: anchor full|crop FILE...\n"); return 2; }
    while (fgets(line, sizeof line, stdin)) {
        struct timespec start, end;
        int failed = 0;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
        for (int i = 2; i < count; i++) failed += decode(words[i], words[1][0] == 'c');
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
        printf("%.9f %d\n", (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec), failed);
        fflush(stdout);
    }
    return 0;
}
