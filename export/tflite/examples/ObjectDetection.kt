// Detects objects on Android with MediaPipe Tasks. Put a file of `kerasdet export --format tflite` (--postprocessing nms or
// postprocess) into app/src/main/assets.
//
// build.gradle.kts: implementation("com.google.mediapipe:tasks-vision:<the newest>")

import android.content.Context
import android.graphics.Bitmap
import com.google.mediapipe.framework.image.BitmapImageBuilder
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.core.RunningMode
import com.google.mediapipe.tasks.vision.objectdetector.ObjectDetector

class ObjectDetection(context: Context, model: String = "detector.tflite") : AutoCloseable {
    private val detector = ObjectDetector.createFromOptions(
        context,
        ObjectDetector.ObjectDetectorOptions.builder()
            .setBaseOptions(BaseOptions.builder().setModelAssetPath(model).build())
            .setRunningMode(RunningMode.IMAGE)
            .setScoreThreshold(0.3f)
            .build(),
    )

    /** Returns label, score and box of each object; boxes are in pixels of the bitmap (ARGB_8888). */
    fun detect(bitmap: Bitmap) = detector.detect(BitmapImageBuilder(bitmap).build()).detections().map {
        val best = it.categories().first()
        Triple(best.categoryName(), best.score(), it.boundingBox())
    }

    override fun close() = detector.close()
}
