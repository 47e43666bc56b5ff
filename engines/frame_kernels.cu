// Makes the inputs of networks out of a frame that lies on the card, as the CPU code of the pipeline makes them
// out of one in host memory: see faces/align.py (cut_out) and faces/detect.py. Pictures are uint8 RGB without gaps
// between rows. Results are rounded to whole levels where the CPU code has 8-bit pictures on the way.
//
// Every kernel takes addresses first and one structure of 4-byte fields last, by value. No shared memory and no
// intrinsics, so that the tests can run this very file on a CPU.

#define MAX_FACES 8
#define ROWS_OF_A_THREAD 8

// A square crop of one face: a part of the frame is shrunk to `small_w` by `small_h` by averaging areas (not at all
// where the sizes are equal), and sampled there bilinearly.
struct Crop {
    float small_from_crop[6];
    int x0, y0, x1, y1;          // the part, px of the frame
    int small_w, small_h;
    int border;                  // what lies beyond: 0 repeated, 1 mirrored without the edge pixel, 2 black
    int first;                   // where this face's values begin, in floats
    int pixel_step, channel_step;  // in floats: 1 and size * size for planes, 3 and 1 for pixels
    float scale[3], shift[3];    // what is written is level * scale + shift
};

struct Crops {
    int frame_w, size;
    struct Crop faces[MAX_FACES];
};

// A part of the frame resized to `w` by `h`, at the top left of a black canvas, as a detector wants it.
struct Look {
    int frame_w;
    int x0, y0, x1, y1;          // the part, px of the frame
    int w, h;
    int canvas_w, canvas_h;
    int by_area;                 // averages areas; else bilinear
    float dark, lifted, most_gain;  // a mean below `dark` is lifted to `lifted`, by no more than `most_gain`
};

static __device__ int clamped(int value, int least, int most) {
    return value < least ? least : value > most ? most : value;
}

static __device__ float level(float value) {  // as an 8-bit picture holds it
    return value < 0.0f ? 0.0f : value > 255.0f ? 255.0f : rintf(value);
}

// Where a pixel beyond the border is taken from; -1: nowhere, it is black.
static __device__ int inside(int at, int n, int border) {
    if (at >= 0 && at < n) return at;
    if (border == 2) return -1;
    if (border == 0 || n == 1) return clamped(at, 0, n - 1);
    int period = 2 * (n - 1);
    at = (at < 0 ? -at : at) % period;
    return at < n ? at : period - at;
}

// One pixel of the part shrunk to `w` by `h`: the mean over the area that it covers, partial pixels by their share.
static __device__ void area_mean(const unsigned char* frame, int frame_w, int x0, int y0, int x1, int y1, int w,
                                 int h, int at_x, int at_y, float* rgb) {
    float step_x = (float)(x1 - x0) / w, step_y = (float)(y1 - y0) / h;
    float left = at_x * step_x, right = left + step_x, top = at_y * step_y, bottom = top + step_y;
    int first_x = clamped((int)floorf(left + 1e-3f), 0, x1 - x0 - 1);
    int last_x = clamped((int)ceilf(right - 1e-3f) - 1, first_x, x1 - x0 - 1);
    int first_y = clamped((int)floorf(top + 1e-3f), 0, y1 - y0 - 1);
    int last_y = clamped((int)ceilf(bottom - 1e-3f) - 1, first_y, y1 - y0 - 1);
    float total = 0.0f, sum[3] = {0.0f, 0.0f, 0.0f};
    for (int y = first_y; y <= last_y; y++) {
        float share_y = fminf(bottom, y + 1.0f) - fmaxf(top, (float)y);
        const unsigned char* row = frame + ((size_t)(y0 + y) * frame_w + x0) * 3;
        for (int x = first_x; x <= last_x; x++) {
            float share = share_y * (fminf(right, x + 1.0f) - fmaxf(left, (float)x));
            total += share;
            for (int c = 0; c < 3; c++) sum[c] += share * row[3 * x + c];
        }
    }
    for (int c = 0; c < 3; c++) rgb[c] = level(sum[c] / total);
}

static __device__ void small_pixel(const unsigned char* frame, int frame_w, const struct Crop* face, int x, int y,
                                   float* rgb) {
    x = inside(x, face->small_w, face->border);
    y = inside(y, face->small_h, face->border);
    if (x < 0 || y < 0) {
        rgb[0] = rgb[1] = rgb[2] = 0.0f;
    } else if (face->small_w == face->x1 - face->x0 && face->small_h == face->y1 - face->y0) {
        const unsigned char* from = frame + ((size_t)(face->y0 + y) * frame_w + face->x0 + x) * 3;
        for (int c = 0; c < 3; c++) rgb[c] = from[c];
    } else {
        area_mean(frame, frame_w, face->x0, face->y0, face->x1, face->y1, face->small_w, face->small_h, x, y, rgb);
    }
}

// Crops of several faces. One thread a pixel: x and y of the crop, z the face.
extern "C" __global__ void crop_faces(const unsigned char* frame, float* out, struct Crops crops) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= crops.size || y >= crops.size) return;
    const struct Crop* face = &crops.faces[blockIdx.z];
    const float* m = face->small_from_crop;
    // What is a million pixels away is beyond any border, and fits an int.
    float at_x = fminf(fmaxf(m[0] * x + m[1] * y + m[2], -1e6f), 1e6f);
    float at_y = fminf(fmaxf(m[3] * x + m[4] * y + m[5], -1e6f), 1e6f);
    int left = (int)floorf(at_x), top = (int)floorf(at_y);
    float fx = at_x - left, fy = at_y - top;
    float a[3], b[3], c[3], d[3];
    small_pixel(frame, crops.frame_w, face, left, top, a);
    small_pixel(frame, crops.frame_w, face, left + 1, top, b);
    small_pixel(frame, crops.frame_w, face, left, top + 1, c);
    small_pixel(frame, crops.frame_w, face, left + 1, top + 1, d);
    float* to = out + face->first + (size_t)(y * crops.size + x) * face->pixel_step;
    for (int i = 0; i < 3; i++) {
        float upper = a[i] + fx * (b[i] - a[i]), lower = c[i] + fx * (d[i] - c[i]);
        to[(size_t)i * face->channel_step] = level(upper + fy * (lower - upper)) * face->scale[i] + face->shift[i];
    }
}

// Before `fill_canvas`.
extern "C" __global__ void clear_sum(unsigned int* sum_of_all) { *sum_of_all = 0; }

// A part of the frame on the canvas, and the sum of all its levels. One thread a column of a few rows.
extern "C" __global__ void fill_canvas(const unsigned char* frame, unsigned char* canvas, unsigned int* sum_of_all,
                                       struct Look look) {
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    int first = (blockIdx.y * blockDim.y + threadIdx.y) * ROWS_OF_A_THREAD;
    if (x >= look.canvas_w || first >= look.canvas_h) return;
    int part_w = look.x1 - look.x0, part_h = look.y1 - look.y0, in_x = x < look.w;
    float at_x = (x + 0.5f) * ((float)part_w / look.w) - 0.5f;
    at_x = fminf(fmaxf(at_x, 0.0f), part_w - 1.0f);
    int left = (int)at_x, right = clamped(left + 1, 0, part_w - 1);
    float fx = at_x - left;
    unsigned int sum = 0;
    for (int y = first; y < clamped(first + ROWS_OF_A_THREAD, 0, look.canvas_h); y++) {
        float rgb[3] = {0.0f, 0.0f, 0.0f};
        if (in_x && y < look.h && look.by_area) {
            area_mean(frame, look.frame_w, look.x0, look.y0, look.x1, look.y1, look.w, look.h, x, y, rgb);
        } else if (in_x && y < look.h) {
            float at_y = (y + 0.5f) * ((float)part_h / look.h) - 0.5f;
            at_y = fminf(fmaxf(at_y, 0.0f), part_h - 1.0f);
            int top = (int)at_y, bottom = clamped(top + 1, 0, part_h - 1);
            float fy = at_y - top;
            const unsigned char* upper = frame + ((size_t)(look.y0 + top) * look.frame_w + look.x0) * 3;
            const unsigned char* lower = frame + ((size_t)(look.y0 + bottom) * look.frame_w + look.x0) * 3;
            for (int c = 0; c < 3; c++) {
                float u = upper[3 * left + c] + fx * ((float)upper[3 * right + c] - upper[3 * left + c]);
                float v = lower[3 * left + c] + fx * ((float)lower[3 * right + c] - lower[3 * left + c]);
                rgb[c] = level(u + fy * (v - u));
            }
        }
        for (int c = 0; c < 3; c++) {
            canvas[((size_t)y * look.canvas_w + x) * 3 + c] = (unsigned char)rgb[c];
            sum += (unsigned int)rgb[c];
        }
    }
    if (sum) atomicAdd(sum_of_all, sum);
}

// The canvas as planes of blue, green and red, lifted where it is dark on the whole. One thread a pixel.
extern "C" __global__ void read_canvas(const unsigned char* canvas, float* out,
                                       const unsigned int* sum_of_all, struct Look look) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= look.canvas_w || y >= look.canvas_h) return;
    size_t n = (size_t)look.canvas_w * look.canvas_h, at = (size_t)y * look.canvas_w + x;
    float mean = (float)((double)*sum_of_all / (3.0 * n));
    float gain = mean < look.dark ? fminf(look.lifted / fmaxf(mean, 1.0f), look.most_gain) : 1.0f;
    for (int c = 0; c < 3; c++) out[(2 - c) * n + at] = level(canvas[3 * at + c] * gain);
}

// -- pasting, see paste/blend.py and paste/sharpness.py

// A crop bent over a region: `grid` holds crop pixels for the centres of `cells` by `cells` cells of the region, with
// a rim of one cell more on every side.
struct Bend {
    int crop_size, cells;
    int w, h;                    // of what is made
    int cubic;                   // else bilinear
};

// What is pasted over a region of the frame.
struct Paste {
    int w, h;                    // of the region
    int bent_w, bent_h;          // of the bent crop: the region's, or smaller and enlarged bicubically
    int mask_w, mask_h;          // of the mask, enlarged bilinearly
    int tile_size, tile_x, tile_y;  // of the noise, and where in it the region begins
    float grain;                 // levels for each unit of the noise
};

// Weights of four neighbours for a share of the way from the second to the third; OpenCV's, with A = -0.75.
static __device__ void cubic_weights(float way, float* weights) {
    const float a = -0.75f;
    float before = way + 1.0f, after = 1.0f - way;
    weights[0] = ((a * before - 5.0f * a) * before + 8.0f * a) * before - 4.0f * a;
    weights[1] = ((a + 2.0f) * way - (a + 3.0f)) * way * way + 1.0f;
    weights[2] = ((a + 2.0f) * after - (a + 3.0f)) * after * after + 1.0f;
    weights[3] = 1.0f - weights[0] - weights[1] - weights[2];
}

// A picture between its pixels, the border repeated: of 16 neighbours, or of 4.
static __device__ void sampled(const unsigned char* image, int w, int h, float at_x, float at_y, int cubic,
                               float* rgb) {
    at_x = fminf(fmaxf(at_x, -1e6f), 1e6f);
    at_y = fminf(fmaxf(at_y, -1e6f), 1e6f);
    int left = (int)floorf(at_x), top = (int)floorf(at_y);
    float across[4] = {0.0f, 1.0f - (at_x - left), at_x - left, 0.0f};
    float down[4] = {0.0f, 1.0f - (at_y - top), at_y - top, 0.0f};
    if (cubic) {
        cubic_weights(at_x - left, across);
        cubic_weights(at_y - top, down);
    }
    float sum[3] = {0.0f, 0.0f, 0.0f};
    for (int i = cubic ? 0 : 1; i < (cubic ? 4 : 3); i++) {
        const unsigned char* row = image + (size_t)clamped(top - 1 + i, 0, h - 1) * w * 3;
        for (int j = cubic ? 0 : 1; j < (cubic ? 4 : 3); j++) {
            const unsigned char* from = row + 3 * clamped(left - 1 + j, 0, w - 1);
            for (int c = 0; c < 3; c++) sum[c] += down[i] * across[j] * from[c];
        }
    }
    for (int c = 0; c < 3; c++) rgb[c] = level(sum[c]);
}

// The crop on the region's grid. One thread a pixel.
extern "C" __global__ void bend_crop(const unsigned char* crop, const float* grid, unsigned char* bent,
                                     struct Bend bend) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= bend.w || y >= bend.h) return;
    int side = bend.cells + 2;
    float cell_x = (x + 0.5f) * bend.cells / bend.w + 0.5f, cell_y = (y + 0.5f) * bend.cells / bend.h + 0.5f;
    int left = clamped((int)cell_x, 0, side - 2), top = clamped((int)cell_y, 0, side - 2);
    float fx = cell_x - left, fy = cell_y - top, at[2], rgb[3];
    for (int i = 0; i < 2; i++) {
        const float* from = grid + 2 * (top * side + left) + i;
        float upper = from[0] + fx * (from[2] - from[0]);
        float lower = from[2 * side] + fx * (from[2 * side + 2] - from[2 * side]);
        at[i] = upper + fy * (lower - upper);
    }
    sampled(crop, bend.crop_size, bend.crop_size, at[0], at[1], bend.cubic, rgb);
    for (int c = 0; c < 3; c++) bent[((size_t)y * bend.w + x) * 3 + c] = (unsigned char)rgb[c];
}

// The bent crop, with grain, over the region in place. One thread a pixel; where the mask is 0 no byte changes.
extern "C" __global__ void paste_face(const unsigned char* bent, const float* mask, const short* tile,
                                      unsigned char* region, struct Paste paste) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= paste.w || y >= paste.h) return;
    float mask_x = fminf(fmaxf((x + 0.5f) * paste.mask_w / paste.w - 0.5f, 0.0f), paste.mask_w - 1.0f);
    float mask_y = fminf(fmaxf((y + 0.5f) * paste.mask_h / paste.h - 0.5f, 0.0f), paste.mask_h - 1.0f);
    int left = (int)mask_x, top = (int)mask_y;
    int right = clamped(left + 1, 0, paste.mask_w - 1), bottom = clamped(top + 1, 0, paste.mask_h - 1);
    const float* upper = mask + (size_t)top * paste.mask_w;
    const float* lower = mask + (size_t)bottom * paste.mask_w;
    float u = upper[left] + (mask_x - left) * (upper[right] - upper[left]);
    float v = lower[left] + (mask_x - left) * (lower[right] - lower[left]);
    float share = u + (mask_y - top) * (v - u), rgb[3];
    if (share <= 0.0f) return;
    if (paste.bent_w == paste.w && paste.bent_h == paste.h) {
        for (int c = 0; c < 3; c++) rgb[c] = bent[((size_t)y * paste.w + x) * 3 + c];
    } else {
        float at_x = (x + 0.5f) * paste.bent_w / paste.w - 0.5f, at_y = (y + 0.5f) * paste.bent_h / paste.h - 0.5f;
        sampled(bent, paste.bent_w, paste.bent_h, at_x, at_y, 1, rgb);
    }
    float noise = 0.0f;
    if (paste.grain > 0.0f) {
        int row = (y + paste.tile_y) % paste.tile_size, column = (x + paste.tile_x) % paste.tile_size;
        noise = tile[row * paste.tile_size + column] * paste.grain;
    }
    unsigned char* to = region + ((size_t)y * paste.w + x) * 3;
    for (int c = 0; c < 3; c++) {
        to[c] = (unsigned char)level(to[c] * (1.0f - share) + level(rgb[c] + noise) * share);
    }
}
