/*
 * nucpipe: puts the nuclei of this folder onto the open image, or onto every image of the project.
 *
 * In QuPath: Automate > Script editor, open this file, Run. For all images of a project set ALL_IMAGES to true, or
 * leave it and take Run > Run for project. Nuclei that were imported before are replaced; nothing else is touched.
 * For QuPath 0.4 and later.
 */
import groovy.json.JsonSlurper
import java.util.zip.GZIPInputStream
import qupath.lib.common.ColorTools
import qupath.lib.io.PathIO
import qupath.lib.objects.classes.PathClass
import qupath.lib.scripting.QP

FOLDER = @FOLDER@  // where this file lies; change it if the folder was moved
ALL_IMAGES = false

about = new JsonSlurper().parse(new File(FOLDER, 'classes.json'), 'UTF-8')

/* The slide of this folder that an image shows: the one whose name the image's name begins with. */
def slideOf(String image) {
    return about.slides.keySet()
        .findAll { image == it || image.startsWith(it + '.') || image.startsWith(it + ' ') }
        .max { it.length() }
}

def setColours(String library) {
    about.libraries[library].each { label, rgb ->
        PathClass.fromString(label, null).setColor(ColorTools.packRGB(rgb[0], rgb[1], rgb[2]))
    }
}

/* How many nuclei were put onto an image; null where the folder has none for it. */
def importInto(imageData, String image) {
    def slide = slideOf(image)
    if (slide == null) {
        println "nucpipe: no nuclei for ${image} in ${FOLDER}"
        return null
    }
    def expected = about.slides[slide]
    def server = imageData.getServer()
    if (server.getWidth() != expected.width || server.getHeight() != expected.height)
        println "nucpipe: ${image} is ${server.getWidth()} x ${server.getHeight()} pixels, the nuclei are of " +
            "${expected.width} x ${expected.height}: check that they lie in their places"
    def nuclei = new File(FOLDER, expected.file).withInputStream { stream ->
        PathIO.readObjectsFromGeoJSON(new GZIPInputStream(stream))
    }
    def hierarchy = imageData.getHierarchy()
    def ids = nuclei.collect { it.getID() }.toSet()
    def before = hierarchy.getDetectionObjects().findAll { ids.contains(it.getID()) }
    if (before)
        hierarchy.removeObjects(before, true)
    hierarchy.addObjects(nuclei)
    println "nucpipe: ${nuclei.size()} nuclei on ${image}" + (before ? ", ${before.size()} old ones replaced" : '')
    return nuclei.size()
}

setColours(about.primary)
def open = QP.getProjectEntry()
if (ALL_IMAGES) {
    QP.getProject().getImageList().each { entry ->
        if (slideOf(entry.getImageName()) == null)
            return
        // The open image is changed where it is shown; saving it is left to the user, as for any other change.
        def shown = open != null && entry == open
        def imageData = shown ? QP.getCurrentImageData() : entry.readImageData()
        if (importInto(imageData, entry.getImageName()) != null && !shown)
            entry.saveImageData(imageData)
    }
} else {
    def imageData = QP.getCurrentImageData()
    importInto(imageData, open != null ? open.getImageName() : imageData.getServer().getMetadata().getName())
}
